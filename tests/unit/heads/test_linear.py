"""One linear layer, and where it starts."""

from __future__ import annotations

import pytest
import torch

from vlkd_cli.heads.linear import LinearHead


def test_an_identity_start_passes_features_on_unchanged_and_learns() -> None:
    features = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    head = LinearHead(4, width=4, start="identity")
    assert torch.equal(head(features), features)
    head(features).sum().backward()
    assert head.linear.weight.grad is not None and head.linear.weight.grad.abs().min() > 0


def test_an_identity_start_needs_the_width_of_the_features() -> None:
    with pytest.raises(ValueError, match="start: identity needs width 4, that of its features"):
        LinearHead(4, width=5, start="identity")
