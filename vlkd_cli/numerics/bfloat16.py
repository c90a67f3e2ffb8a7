"""bfloat16 in NumPy, which has no such type: the upper half of float32, held as uint16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite values rounded to the nearest, ties to even, as torch does it."""
    bits = values.view(np.uint32)
    to_even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + to_even) >> np.uint32(16)).astype(
        np.uint16
    )
    return rounded


def as_float32(stored: np.ndarray) -> NDArray[np.float32]:
    """float32 values of an array that holds bfloat16; float32 is not copied."""
    if stored.dtype != np.uint16:
        return stored.astype(np.float32, copy=False)
    return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
