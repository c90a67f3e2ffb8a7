from __future__ import annotations

import torch

from vlkd_cli.heads.glu import LARGEST, GLUHead


def test_large_features_stay_finite() -> None:
    torch.manual_seed(0)
    head = GLUHead(4, width=3, factor=2)
    with torch.no_grad():
        head.gate.bias.fill_(1e6)
        head.value.bias.fill_(1e30)
    # The gate is at most 6 and the value at most LARGEST, so each hidden feature is their product.
    hidden = torch.full((1, 8), 6 * LARGEST)
    torch.testing.assert_close(head(torch.randn(1, 4)), head.out(hidden))
