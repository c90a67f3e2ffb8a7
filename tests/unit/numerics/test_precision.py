from __future__ import annotations

import pytest
import torch

from vlkd_cli.numerics.precision import matrix_precision


def test_matrix_precision_holds_within_the_block_and_on_gpus_only() -> None:
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), matrix_precision("high", torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    with matrix_precision("high", torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == before
