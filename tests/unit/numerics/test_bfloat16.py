"""bfloat16 as torch rounds it."""

from __future__ import annotations

import numpy as np
import torch

from vlkd_cli.numerics.bfloat16 import as_bfloat16, as_float32


def test_values_are_rounded_as_torch_rounds_them() -> None:
    values = np.random.RandomState(0).randn(1000).astype(np.float32)
    # Ties to either side, the largest that does not overflow, the smallest normal, and zeros.
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7F0000, 0x00800000], dtype=np.uint32)
    values = np.concatenate([values, ties.view(np.float32), np.array([0.0, -0.0], np.float32)])
    expected = torch.from_numpy(values).bfloat16()
    stored = as_bfloat16(values)
    assert np.array_equal(stored, expected.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(as_float32(stored), expected.float().numpy())
    assert as_float32(values) is values or np.shares_memory(as_float32(values), values)
