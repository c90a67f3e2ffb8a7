"""A matrix of scaled cosines in tiles, with the exact gradient, never held as a whole.

Rows are normalized tile by tile too, which saves two copies of the features in memory. All tiles
of small matrices are stored from forward to backward, which saves a matrix product; of large ones
a bounded fraction is stored and the others are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_cli.distillers.positives import Positives
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.numerics.autograd import Context
from vlkd_cli.numerics.precision import matrix_precision

STORED_ENTRIES = 4096 * 4096
"""All tiles of matrices up to this many entries are stored for the backward pass (64 MiB in
float32)."""
MOST_STORED_ENTRIES = 2 * STORED_ENTRIES
"""Of larger ones an eighth is stored, and no more than so many entries: a thirty-second of what
the dense loss holds."""
TILE_ROWS = 1024
TILE_COLUMNS = 1024
"""On the CPU, where a tile should stay near the cache."""
SMALL_ENTRIES = 512 * 512
"""Tiles up to this many entries are summed in double precision on a CPU."""
LARGEST_TILE_ON_GPU = 8192
"""Rows and columns. Small tiles would cost more in launches than in products."""
IGNORED = -1e4
"""The logit of a pair that is left out: its exponential is 0 next to any other, and finite where a
tile holds nothing else."""


class Tile:
    """Rows [top, bottom) and columns [left, right) of the matrix, the columns' offset to the rows
    that match them, and whether it was stored in the forward pass."""

    def __init__(
        self, top: int, bottom: int, left: int, right: int, first_match: int, is_stored: bool
    ) -> None:
        self.rows, self.columns, self.is_stored = slice(top, bottom), slice(left, right), is_stored
        self.diagonal = top + first_match - left  # the tile's column that matches its first row

    def weights(self, positives: Positives) -> tuple[Tensor, Tensor]:
        """The tile's weights of positives, in float64, and which pairs are ignored."""
        return positives.weights(self.rows, self.columns, self.diagonal)

    def matches(self, values: Tensor) -> Tensor:
        """The entries of rows with their matches, a view; they lie on one diagonal, which may start
        left or right of the tile."""
        skipped, start = max(-self.diagonal, 0), max(self.diagonal, 0)
        return values[skipped:, start:].diagonal()


class Scratch:
    """Memory for one tile after another: what is written there stays in the processor's cache,
    unlike in new memory."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def of(self, use: str, like: Tensor, rows: int, columns: int) -> Tensor:
        """`[rows, columns]` of the dtype and device of `like`; holds until the next call for the
        same use."""
        flat = self._flat.get(use)
        if flat is None or flat.numel() < rows * columns or flat.dtype != like.dtype:
            flat = self._flat[use] = like.new_empty(rows * columns)
        return flat[: rows * columns].view(rows, columns)


class Matrix(NamedTuple):
    """Z = scale * cosines of `rows` `[B, D]` and `columns` `[N, D]`, with the inverse lengths of
    both (0 for zero rows).

    With `tf32` the rows and columns are multiplied as they are, which is exact in TF32 for values
    that come from 16 bits, and the products are scaled afterwards; gradients are multiplied in TF32
    too, whose rounding does not exceed that of the 16-bit gradients that they become.
    """

    rows: Tensor
    columns: Tensor
    scale: Tensor
    row_inverse: Tensor
    column_inverse: Tensor
    tf32: bool = False

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, scale: Tensor, tf32: bool) -> Matrix:
        return cls(rows, columns, scale, _inverse_lengths(rows), _inverse_lengths(columns), tf32)

    def precision(self) -> AbstractContextManager[None]:
        """Of products on a GPU."""
        return matrix_precision("high" if self.tf32 else "highest", self.rows.device)

    def product(
        self, rows: slice, columns: slice, scaled: Tensor, unit_columns: Tensor, out: Tensor | None
    ) -> Tensor:
        """A tile of Z, into `out` where that is given.

        Args:
            scaled: the unit rows times the scale.
        """
        if not self.tf32:
            with self.precision():
                return torch.mm(scaled, unit_columns.T, out=out)
        with self.precision():
            values = torch.mm(self.rows[rows], self.columns[columns].T, out=out)
        row_factors = self.row_inverse[rows] * self.scale
        return values.mul_(row_factors).mul_(self.column_inverse[columns].T)

    def walk(
        self, scratch: Scratch, stored: list[Tensor], room: int = 0
    ) -> Iterator[tuple[Tile, Tensor, Tensor, Tensor]]:
        """Tiles of Z with their unit rows and unit columns, which are never held as a whole, only
        until the next tile.

        The first tiles are the stored ones. As many entries as there is `room` for get memory of
        their own, which the caller may store.
        """
        number, (height, width) = 0, tile_size(self.rows.device)
        for top in range(0, len(self.rows), height):
            bottom = min(top + height, len(self.rows))
            row_block = self.rows[top:bottom] * self.row_inverse[top:bottom]
            scaled = row_block * self.scale
            for left in range(0, len(self.columns), width):
                right = min(left + width, len(self.columns))
                column_block = scratch.of(
                    "columns", self.columns, right - left, self.columns.shape[1]
                )
                torch.mul(
                    self.columns[left:right], self.column_inverse[left:right], out=column_block
                )
                is_stored = number < len(stored)
                if is_stored:
                    values = stored[number]
                else:
                    room -= (bottom - top) * (right - left)
                    out = scratch.of("values", scaled, bottom - top, right - left)
                    values = self.product(
                        slice(top, bottom),
                        slice(left, right),
                        scaled,
                        column_block,
                        None if room >= 0 else out,
                    )
                    if room >= 0:
                        stored.append(values)
                yield (
                    Tile(top, bottom, left, right, rank() * len(self.rows), is_stored),
                    values,
                    row_block,
                    column_block,
                )
                number += 1

    def entries_to_store(self, ctx: Context) -> int:
        """How many entries may be stored for the backward pass."""
        entries = len(self.rows) * len(self.columns)
        if not any(ctx.needs_input_grad):
            return 0
        return entries if entries <= STORED_ENTRIES else min(entries // 8, MOST_STORED_ENTRIES)

    def gradients(
        self,
        ctx: Context,
        scratch: Scratch,
        factor: Tensor,
        to_gradient: Callable[[Tile, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients to rows, columns and scale of factor * L, where `to_gradient` turns a tile of Z
        into one of dL/dZ."""
        of_rows = torch.zeros_like(self.rows)
        of_columns = torch.zeros_like(self.columns) if ctx.needs_input_grad[1] else None
        # Stored tiles are overwritten; a second backward over the same graph recomputes them.
        stored, ctx.stored = ctx.stored, []
        for tile, values, row_block, column_block in self.walk(scratch, stored):
            gradient = to_gradient(tile, values)
            with self.precision():
                of_rows[tile.rows].addmm_(gradient, column_block)
                if of_columns is not None:
                    of_columns[tile.columns].addmm_(gradient.T, row_block)
        of_scale = factor * _through_lengths(
            of_rows, self.rows, self.row_inverse, factor * self.scale
        )
        if of_columns is not None:
            _through_lengths(of_columns, self.columns, self.column_inverse, factor * self.scale)
        return of_rows, of_columns, of_scale if ctx.needs_input_grad[2] else None


def tile_size(device: torch.device) -> tuple[int, int]:
    """Rows and columns of a tile. On a GPU four tiles take at most 1/64 of its memory."""
    if device.type != "cuda":
        return TILE_ROWS, TILE_COLUMNS
    side, memory = LARGEST_TILE_ON_GPU, torch.cuda.get_device_properties(device).total_memory
    while side > TILE_ROWS and 4 * side**2 * torch.float32.itemsize > memory // 64:
        side //= 2
    return side, side


def _inverse_lengths(features: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    inverse: Tensor = 1 / lengths.masked_fill(lengths <= 1e-12, torch.inf)
    return inverse


def _through_lengths(gradient: Tensor, features: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    """Turn gradients to unit rows into gradients to the rows, times a factor, in place; the sum of
    <unit row, gradient> before."""
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    _, height = tile_size(features.device)
    for top in range(0, len(features), height):
        some = slice(top, top + height)
        unit_rows = features[some] * inverse[some]
        along = torch.linalg.vecdot(unit_rows, gradient[some])[:, None]
        total += along.double().sum()
        gradient[some].addcmul_(unit_rows, along, value=-1).mul_(inverse[some] * factor)
    return total.to(gradient.dtype)


def full_precision(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Both sides in float32 or float64, and whether they are multiplied in TF32."""
    narrow = (torch.float16, torch.bfloat16)
    tf32 = student.dtype in narrow and teacher.dtype in narrow and multiplies_tf32(student.device)
    return (
        student.float() if student.dtype in narrow else student,
        teacher.float() if teacher.dtype in narrow else teacher,
        tf32,
    )


def multiplies_tf32(device: torch.device) -> bool:
    return device.type == "cuda"


def precise(values: Tensor) -> Tensor:
    """Small tiles on a CPU in double precision, where it costs nothing and preserves the digits of
    a loss near 0."""
    is_cheap = values.device.type == "cpu" and values.numel() <= SMALL_ENTRIES
    return values.double() if is_cheap else values
