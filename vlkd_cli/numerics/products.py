"""Inner products in the precision that this processor multiplies fastest, and how far they can be
from the exact ones."""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import torch
from torch import Tensor

_PAYS_BELOW = 0.75
"""A bfloat16 product must take at most this fraction of a float32 one's time: its candidates are
scored again."""


@functools.cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it faster than float32, else float32.

    Measured, once per process, in some 10 ms. CPU flags do not determine it: next to AMX,
    AVX512-BF16 alone is twice as fast as float32 on some processors and slower on others,
    elsewhere bfloat16 is emulated, and ONEDNN_MAX_CPU_ISA may turn any of it off.
    """
    seconds = {dtype: _seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    pays = seconds[torch.bfloat16] < _PAYS_BELOW * seconds[torch.float32]
    return torch.bfloat16 if pays else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    queries, rows = torch.ones(128, 512, dtype=dtype), torch.ones(1024, 512, dtype=dtype)
    torch.mm(queries, rows.T)  # prepares the kernel
    found = []
    for _ in range(3):
        start = time.perf_counter()
        torch.mm(queries, rows.T)
        found.append(time.perf_counter() - start)
    return min(found)


class Rounded(NamedTuple):
    """Rows `[N, D]` in the type they are multiplied in, the lengths `[N]` of the exact rows, and
    how far each lies from its exact one, `[N]`."""

    rows: Tensor
    lengths: Tensor
    lost: Tensor


def rounded(rows: Tensor, dtype: torch.dtype) -> Rounded:
    """Rows in another type. On CUDA float32 rows are rounded to TF32, so that a product gives the
    same in true float32 and in TF32."""
    lengths = rows.norm(dim=1)
    if dtype == rows.dtype and not rows.is_cuda:
        return Rounded(rows, lengths, torch.zeros_like(lengths))
    cast = rows.to(dtype)
    if dtype == torch.float32 and rows.is_cuda:
        cast = to_tf32(cast)
    return Rounded(cast, lengths, (cast.to(rows.dtype) - rows).norm(dim=1))


def to_tf32(rows: Tensor) -> Tensor:
    """float32 rounded to the 11 significant bits that TF32 multiplies, for values below 2^114.

    Source: Veltkamp's splitting; Dekker, A floating-point technique for extending the available
    precision, Numerische Mathematik 18, 1971, section 5.
    """
    shifted = rows * (2.0**13 + 1)
    return shifted - (shifted - rows)


def product_error(queries: Rounded, rows: Rounded) -> Tensor:
    """How far any product of each query with the rows can be from the exact one before the product
    itself is rounded, `[Q]`.

    |q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'| (Cauchy-Schwarz), and the sums inside the product
    add their own rounding.
    """
    length, lost = rows.lengths.max(), rows.lost.max()
    error = queries.lost * length + (queries.lengths + queries.lost) * lost
    summing = (queries.rows.shape[1] + 2) * torch.finfo(length.dtype).eps
    return error + queries.lengths * length * summing


def result_rounding(dtype: torch.dtype) -> float:
    """How far a product's result is rounded, relative to itself."""
    return 0.51 * torch.finfo(dtype).eps
