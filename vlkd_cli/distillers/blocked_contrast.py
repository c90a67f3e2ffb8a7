"""InfoNCE and SigLIP over tiles of the similarity matrix, with the exact gradient.

A rank multiplies its own B rows with the gathered N columns, once, tile by tile. Its rows' log-sum-exps are complete by themselves;
those of the columns are completed by exchanging N numbers per rank. Small matrices keep their tiles from forward to backward, which
saves a matrix product; large ones compute them anew, so that nothing of size B x N is ever held. Rows are normalised tile by tile too,
which keeps two copies of the features out of memory.

Derivation. With Z = s X Y^T, rows r_i = lse_j Z_ij, columns c_j = lse_i Z_ij and L = mean_i (r_i + c_i) / 2 - mean_i Z_ii,
dL/dZ_ij = (exp(Z_ij - r_i) + exp(Z_ij - c_j)) / 2N - [i = j] / N. Both exponentials share one factor: with any m,
exp(Z_ij - r_i) + exp(Z_ij - c_j) = exp(Z_ij - r_i) (1 + exp(r_i - m) exp(m - c_j)), so a tile costs one exponential, not two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.distributed.runtime import rank, world_size

KEPT_ENTRIES = 4096 * 4096
"""Matrices up to this many entries keep their tiles for the backward pass (64 MiB in float32)."""
SMALL_ENTRIES = 512 * 512
TILE_ROWS = 512
TILE_COLUMNS = 1024
SAFE_NATS = 60.0
"""A tile whose row and column log-sum-exps all lie this close to its maximum may share one shift: e^-60 is far above float32's
smallest normal number, and what underflows beside it is below a relative 1e-11."""


class _Tile:
    """Rows [top, bottom) and columns [left, right) of the matrix, and the columns' offset to the rows that match them."""

    def __init__(self, top: int, bottom: int, left: int, right: int, first_match: int) -> None:
        self.rows, self.columns = slice(top, bottom), slice(left, right)
        self.diagonal = top + first_match - left  # the tile's column that matches its first row

    def matches(self, values: Tensor) -> Tensor:
        """The entries of rows with their matches, a view; they lie on one diagonal, which may start left or right of the tile."""
        skipped, start = max(-self.diagonal, 0), max(self.diagonal, 0)
        return values[skipped:, start:].diagonal()


class _Matrix(NamedTuple):
    """Z = scale * cosines of `rows` `[B, D]` and `columns` `[N, D]`, with the inverse lengths of both (0 for zero rows)."""

    rows: Tensor
    columns: Tensor
    scale: Tensor
    row_inverse: Tensor
    column_inverse: Tensor

    @classmethod
    def of(cls, rows: Tensor, columns: Tensor, scale: Tensor) -> _Matrix:
        return cls(rows, columns, scale, _inverse_lengths(rows), _inverse_lengths(columns))

    def walk(self, kept: list[Tensor] | None = None) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
        """Tiles of Z (the kept ones where there are any) with their unit rows and unit columns, which are never held as a whole."""
        number = 0
        for top in range(0, len(self.rows), TILE_ROWS):
            bottom = min(top + TILE_ROWS, len(self.rows))
            row_block = self.rows[top:bottom] * self.row_inverse[top:bottom]
            scaled = row_block * self.scale
            for left in range(0, len(self.columns), TILE_COLUMNS):
                right = min(left + TILE_COLUMNS, len(self.columns))
                column_block = self.columns[left:right] * self.column_inverse[left:right]
                values = scaled @ column_block.T if kept is None else kept[number]
                yield _Tile(top, bottom, left, right, rank() * len(self.rows)), values, row_block, column_block
                number += 1

    def keeps_tiles(self, ctx: Any) -> bool:
        return any(ctx.needs_input_grad) and len(self.rows) * len(self.columns) <= KEPT_ENTRIES

    def gradients(
        self, ctx: Any, kept: list[Tensor] | None, factor: Tensor, to_gradient: Callable[[_Tile, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients to rows, columns and scale of factor * L, where `to_gradient` turns a tile of Z into one of dL/dZ."""
        of_rows = torch.zeros_like(self.rows)
        of_columns = torch.zeros_like(self.columns) if ctx.needs_input_grad[1] else None
        for tile, values, row_block, column_block in self.walk(kept):
            gradient = to_gradient(tile, values)
            of_rows[tile.rows].addmm_(gradient, column_block)
            if of_columns is not None:
                of_columns[tile.columns].addmm_(gradient.T, row_block)
        of_scale = factor * _through_lengths(of_rows, self.rows, self.row_inverse, factor * self.scale)
        if of_columns is not None:
            _through_lengths(of_columns, self.columns, self.column_inverse, factor * self.scale)
        return of_rows, of_columns, of_scale if ctx.needs_input_grad[2] else None


def _inverse_lengths(features: Tensor) -> Tensor:
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return 1 / lengths.masked_fill(lengths <= 1e-12, torch.inf)


def _through_lengths(gradient: Tensor, features: Tensor, inverse: Tensor, factor: Tensor) -> Tensor:
    """Turn gradients to unit rows into gradients to the rows, times a factor, in place; the sum of <unit row, gradient> before."""
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for top in range(0, len(features), TILE_COLUMNS):
        some = slice(top, top + TILE_COLUMNS)
        unit_rows = features[some] * inverse[some]
        along = torch.linalg.vecdot(unit_rows, gradient[some])[:, None]
        total += along.double().sum()
        gradient[some].addcmul_(unit_rows, along, value=-1).mul_(inverse[some] * factor)
    return total.to(gradient.dtype)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        matrix = _Matrix.of(rows, columns, scale)
        kept: list[Tensor] | None = [] if matrix.keeps_tiles(ctx) else None
        # The running sums are few, so double precision is free and no rounding piles up over the tiles.
        row_lse = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
        column_lse = torch.full((len(columns),), -torch.inf, dtype=torch.float64, device=rows.device)
        matched = torch.zeros((), dtype=torch.float64, device=rows.device)
        for tile, values, _, _ in matrix.walk():
            if kept is not None:
                kept.append(values)
            # From the same products as the log-sum-exps, so that a sure match, or a batch of one, leaves exactly 0.
            matched += tile.matches(values).double().sum()
            of_rows, of_columns = _lse_both_ways(values)
            row_lse[tile.rows] = torch.logaddexp(row_lse[tile.rows], of_rows)
            column_lse[tile.columns] = torch.logaddexp(column_lse[tile.columns], of_columns)
        column_lse = gather_without_grad(column_lse).view(world_size(), -1).logsumexp(dim=0)
        own = slice(rank() * len(rows), (rank() + 1) * len(rows))
        ctx.save_for_backward(*matrix, row_lse, column_lse)
        ctx.kept = kept
        return (((row_lse + column_lse[own]).sum() / 2 - matched) / len(rows)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *fields, row_lse, column_lse = ctx.saved_tensors
        matrix = _Matrix(*fields)
        # Kept tiles are overwritten below; a second backward over the same graph computes them anew.
        kept, ctx.kept = ctx.kept, None

        def to_gradient(tile: _Tile, values: Tensor) -> Tensor:
            gradient = _softmax_both_ways(values, row_lse[tile.rows], column_lse[tile.columns])
            tile.matches(gradient).sub_(2.0)
            return gradient

        return matrix.gradients(ctx, kept, grads[0] / (2 * len(matrix.rows)), to_gradient)


def _lse_both_ways(values: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and columns, in float64."""
    values = _precise(values)
    if values.device.type == "cpu":
        # With the rows' maxima m_i and the tile's maximum M: a row's maximum, often its match, is exactly 1 in exp(Z_ij - m_i), and its
        # loss keeps its digits; exp(Z_ij - M) is the product with exp(m_i - M).
        row_max = values.amax(dim=1)
        shift = row_max.max()
        exponentials = (values - row_max[:, None]).exp_()
        factors = (row_max.double() - shift).exp_().to(values.dtype)
        column_sum = factors @ exponentials
        if min(factors.min().item(), column_sum.min().item()) > math.exp(-SAFE_NATS):
            return row_max.double() + exponentials.sum(dim=1).double().log_(), shift.double() + column_sum.double().log_()
    # Elsewhere the check would stop the device at every tile, and exponentials are cheap there.
    row_max, column_max = values.amax(dim=1), values.amax(dim=0)
    return (
        row_max.double() + (values - row_max[:, None]).exp_().sum(dim=1).double().log_(),
        column_max.double() + (values - column_max[None, :]).exp_().sum(dim=0).double().log_(),
    )


def _softmax_both_ways(values: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
    """exp(Z - rows' lse) + exp(Z - columns' lse) of a tile, written over it where that is safe."""
    wanted, values = values.dtype, _precise(values)
    # The shift is the log-sum-exp as the tile's precision holds it; what that rounding dropped is put back by a factor.
    shift = row_lse.to(values.dtype)
    if values.device.type == "cpu" and (shift.max() - column_lse.min()).item() < SAFE_NATS:
        exponentials = values.sub_(shift[:, None]).exp_()
        middle = row_lse.max()
        of_rows, factors = (shift - row_lse).exp_(), (shift - middle).exp_()
        both = (part.to(values.dtype) for part in (of_rows[:, None], factors[:, None], (middle - column_lse).exp_()[None, :]))
        return exponentials.mul_(torch.addcmul(*both)).to(wanted)
    of_rows = (values - shift[:, None]).exp_()
    return of_rows.add_((values - column_lse.to(values.dtype)[None, :]).exp_()).to(wanted)


def _precise(values: Tensor) -> Tensor:
    """Small tiles in double precision, where it costs nothing and keeps the digits of a loss near 0."""
    return values.double() if values.numel() <= SMALL_ENTRIES else values


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        matrix = _Matrix.of(rows, columns, scale)
        kept: list[Tensor] | None = [] if matrix.keeps_tiles(ctx) else None
        total = torch.zeros((), dtype=torch.float64, device=rows.device)
        for tile, values, _, _ in matrix.walk():
            values.add_(bias)
            if kept is not None:
                kept.append(values)
            # softplus(z) = -logsigmoid(-z); torch's own softplus drops e^-z above 20. Nearly all of these are tiny and there are N per row:
            # the tiles' sums meet in double precision.
            total -= F.logsigmoid(-values).sum().double() + tile.matches(values).double().sum()
        ctx.save_for_backward(*matrix, bias)
        ctx.kept = kept
        return (total / len(rows)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *fields, bias = ctx.saved_tensors
        matrix = _Matrix(*fields)
        kept, ctx.kept = ctx.kept, None
        of_bias = torch.zeros((), dtype=torch.float64, device=bias.device)

        def to_gradient(tile: _Tile, values: Tensor) -> Tensor:
            gradient = (values if kept is not None else values.add_(bias)).sigmoid_()
            tile.matches(gradient).sub_(1.0)
            of_bias.add_(gradient.sum())
            return gradient

        factor = grads[0] / len(matrix.rows)
        of_rows, of_columns, of_scale = matrix.gradients(ctx, kept, factor, to_gradient)
        return of_rows, of_columns, of_scale, factor * of_bias.to(factor.dtype) if ctx.needs_input_grad[3] else None


def _sides(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The side that stays and the side that travels: one that needs no gradient travels cheapest, as nothing has to come back."""
    if teacher.requires_grad and not student.requires_grad:
        return teacher, gather(student)
    return student, gather(teacher) if teacher.requires_grad else gather_without_grad(teacher)


def blocked_infonce(student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], scale: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean of the two directions' cross-entropies of `scale * cos(student, teacher)` over all ranks, for this rank's rows.

    The objective is symmetric, so the sides may be named either way. The loss's cotangent must be the same on every rank.
    """
    rows, columns = _sides(student, teacher)
    return cast(Tensor, _InfoNCE.apply(rows, columns, scale))


def blocked_siglip(
    student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"], scale: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Sum over all pairs of softplus(-sign * (scale * <s, t> + bias)), for this rank's rows, divided by their number."""
    rows, columns = _sides(student, teacher)
    return cast(Tensor, _SigLIP.apply(rows, columns, scale, bias))
