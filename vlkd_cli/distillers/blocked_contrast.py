"""InfoNCE and SigLIP over tiles of the similarity matrix, with the exact gradient.

A rank multiplies its own B rows with the gathered N columns, once, tile by tile. Its rows'
log-sum-exps are complete by themselves; those of the columns are completed by exchanging N numbers
per rank. Small matrices keep their tiles from forward to backward, which saves a matrix product;
large ones keep a bounded fraction of them and recompute the others, so that nothing of size B x N
is ever held. Rows are normalized tile by tile too, which keeps two copies of the features out of
memory.

Derivation. With Z = s X Y^T, rows r_i = lse_j Z_ij, columns c_j = lse_i Z_ij and L = mean_i (r_i +
c_i) / 2 - mean_i Z_ii, dL/dZ_ij = (exp(Z_ij - r_i) + exp(Z_ij - c_j)) / 2N - [i = j] / N. Both
exponentials share one factor: with any m, exp(Z_ij - r_i) + exp(Z_ij - c_j) = exp(Z_ij - r_i) (1 +
exp(r_i - m) exp(m - c_j)), so a tile costs one exponential, not two.

Where samples match off the diagonal (`Positives`), the matched term is sum_j P_ij Z_ij with P =
W by its row sums, and for columns Q = W^T by its own: the mean over positives stays outside of the
logarithm, so each of them keeps a gradient. dL/dZ = (softmax of rows + softmax of columns - P -
Q^T) / 2N, and for the sigmoid loss (sigmoid(Z) - W) / N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkd_cli.distillers.positives import Positives
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.numerics.precision import matrix_precision

KEPT_ENTRIES = 4096 * 4096
"""Matrices up to this many entries keep all their tiles for the backward pass (64 MiB in
float32)."""
MOST_KEPT_ENTRIES = 2 * KEPT_ENTRIES
"""Larger ones keep an eighth, and no more than so many entries: a thirty-second of what the dense
loss holds."""
SMALL_ENTRIES = 512 * 512
TILE_ROWS = 1024
TILE_COLUMNS = 1024
"""On the CPU, where a tile should stay near the cache."""
LARGEST_TILE_ON_GPU = 8192
"""Rows and columns. Small tiles would cost more in launches than in products."""
IGNORED = -1e4
"""The logit of a pair that is left out: its exponential is 0 next to any other, and finite where a
tile holds nothing else."""
SAFE_NATS = 60.0
"""A tile whose row and column log-sum-exps all lie this close to its maximum may share one shift:
e^-60 is far above float32's smallest normal number, and what underflows next to it is below a
relative 1e-11."""


class _Tile:
    """Rows [top, bottom) and columns [left, right) of the matrix, the columns' offset to the rows
    that match them, and whether it was kept from the forward pass."""

    def __init__(
        self, top: int, bottom: int, left: int, right: int, first_match: int, is_kept: bool
    ) -> None:
        self.rows, self.columns, self.is_kept = slice(top, bottom), slice(left, right), is_kept
        self.diagonal = top + first_match - left  # the tile's column that matches its first row

    def weights(self, positives: Positives) -> tuple[Tensor, Tensor]:
        """The tile's weights of positives, in float64, and which pairs are ignored."""
        return positives.weights(self.rows, self.columns, self.diagonal)

    def matches(self, values: Tensor) -> Tensor:
        """The entries of rows with their matches, a view; they lie on one diagonal, which may start
        left or right of the tile."""
        skipped, start = max(-self.diagonal, 0), max(self.diagonal, 0)
        return values[skipped:, start:].diagonal()


class _Scratch:
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


class _Matrix(NamedTuple):
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
    def of(cls, rows: Tensor, columns: Tensor, scale: Tensor, tf32: bool) -> _Matrix:
        return cls(rows, columns, scale, _inverse_lengths(rows), _inverse_lengths(columns), tf32)

    def precision(self) -> AbstractContextManager[None]:
        """Of products on a GPU."""
        return matrix_precision("high", self.rows.device) if self.tf32 else nullcontext()

    def product(
        self, rows: slice, columns: slice, scaled: Tensor, unit_columns: Tensor, out: Tensor | None
    ) -> Tensor:
        """A tile of Z, into `out` where that is given.

        Args:
            scaled: the unit rows times the scale.
        """
        if not self.tf32:
            return torch.mm(scaled, unit_columns.T, out=out)
        with self.precision():
            values = torch.mm(self.rows[rows], self.columns[columns].T, out=out)
        row_factors = self.row_inverse[rows] * self.scale
        return values.mul_(row_factors).mul_(self.column_inverse[columns].T)

    def walk(
        self, scratch: _Scratch, kept: list[Tensor], room: int = 0
    ) -> Iterator[tuple[_Tile, Tensor, Tensor, Tensor]]:
        """Tiles of Z with their unit rows and unit columns, which are never held as a whole, only
        until the next tile.

        The first tiles are those kept. As many entries as there is `room` for become memory of
        their own, which the caller may keep.
        """
        number, (height, width) = 0, _tile_size(self.rows.device)
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
                is_kept = number < len(kept)
                if is_kept:
                    values = kept[number]
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
                        kept.append(values)
                yield (
                    _Tile(top, bottom, left, right, rank() * len(self.rows), is_kept),
                    values,
                    row_block,
                    column_block,
                )
                number += 1

    def entries_to_keep(self, ctx: Any) -> int:
        """How many entries may be kept for the backward pass."""
        entries = len(self.rows) * len(self.columns)
        if not any(ctx.needs_input_grad):
            return 0
        return entries if entries <= KEPT_ENTRIES else min(entries // 8, MOST_KEPT_ENTRIES)

    def gradients(
        self,
        ctx: Any,
        scratch: _Scratch,
        factor: Tensor,
        to_gradient: Callable[[_Tile, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients to rows, columns and scale of factor * L, where `to_gradient` turns a tile of Z
        into one of dL/dZ."""
        of_rows = torch.zeros_like(self.rows)
        of_columns = torch.zeros_like(self.columns) if ctx.needs_input_grad[1] else None
        # Kept tiles are overwritten; a second backward over the same graph recomputes them.
        kept, ctx.kept = ctx.kept, []
        for tile, values, row_block, column_block in self.walk(scratch, kept):
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


def _tile_size(device: torch.device) -> tuple[int, int]:
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
    _, height = _tile_size(features.device)
    for top in range(0, len(features), height):
        some = slice(top, top + height)
        unit_rows = features[some] * inverse[some]
        along = torch.linalg.vecdot(unit_rows, gradient[some])[:, None]
        total += along.double().sum()
        gradient[some].addcmul_(unit_rows, along, value=-1).mul_(inverse[some] * factor)
    return total.to(gradient.dtype)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        positives: Positives | None,
        tf32: bool,
    ) -> Tensor:
        matrix = _Matrix.of(rows, columns, scale, tf32)
        scratch, kept = _Scratch(), cast(list[Tensor], [])
        # The running sums are few, so double precision is free and no rounding piles up over the
        # tiles.
        row_lse = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
        column_lse = torch.full(
            (len(columns),), -torch.inf, dtype=torch.float64, device=rows.device
        )
        matched = torch.zeros((), dtype=torch.float64, device=rows.device)
        column_matched = torch.zeros_like(column_lse)
        for tile, values, _, _ in matrix.walk(scratch, kept, matrix.entries_to_keep(ctx)):
            # From the same products as the log-sum-exps, so that a sure match, or a batch of one,
            # leaves exactly 0.
            if positives is None:
                matched += tile.matches(values).double().sum()
            else:
                weights, ignored = tile.weights(positives)
                products = weights * values
                matched += (products / positives.row_totals[tile.rows, None]).sum() / 2
                column_matched[tile.columns] += (
                    products.sum(dim=0) / positives.column_totals[tile.columns]
                )
                values.masked_fill_(ignored, IGNORED)
            of_rows, of_columns = _lse_both_ways(values, scratch)
            row_lse[tile.rows] = torch.logaddexp(row_lse[tile.rows], of_rows)
            column_lse[tile.columns] = torch.logaddexp(column_lse[tile.columns], of_columns)
        column_lse = gather_without_grad(column_lse).view(world_size(), -1).logsumexp(dim=0)
        own = slice(rank() * len(rows), (rank() + 1) * len(rows))
        ctx.save_for_backward(*matrix[:5], row_lse, column_lse, *(positives or ()))
        ctx.kept, ctx.tf32 = kept, tf32
        if positives is not None:
            column_matched = gather_without_grad(column_matched).view(world_size(), -1).sum(dim=0)
            matched += column_matched[own].sum() / 2
        return (((row_lse + column_lse[own]).sum() / 2 - matched) / len(rows)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fields, (row_lse, column_lse, *others) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        matrix, scratch = _Matrix(*fields)._replace(tf32=ctx.tf32), _Scratch()
        positives = Positives(*others) if others else None

        def to_gradient(tile: _Tile, values: Tensor) -> Tensor:
            if positives is None:
                gradient = _softmax_both_ways(
                    values, row_lse[tile.rows], column_lse[tile.columns], scratch
                )
                tile.matches(gradient).sub_(2.0)
                return gradient
            weights, ignored = tile.weights(positives)
            values.masked_fill_(ignored, IGNORED)
            gradient = _softmax_both_ways(
                values, row_lse[tile.rows], column_lse[tile.columns], scratch
            )
            inverse = 1 / positives.row_totals[tile.rows, None]
            inverse = inverse + 1 / positives.column_totals[tile.columns]
            return gradient.sub_((weights * inverse).to(gradient.dtype))

        factor = grads[0] / (2 * len(matrix.rows))
        return (*matrix.gradients(ctx, scratch, factor, to_gradient), None, None)


def _lse_both_ways(values: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and columns, in float64."""
    values = _precise(values)
    if values.device.type == "cpu":
        # With the rows' maxima m_i and the tile's maximum M: a row's maximum, often its match, is
        # exactly 1 in exp(Z_ij - m_i), and its loss keeps its digits; exp(Z_ij - M) is the product
        # with exp(m_i - M).
        row_max = values.amax(dim=1)
        shift = row_max.max()
        exponentials = torch.sub(
            values, row_max[:, None], out=scratch.of("exponentials", values, *values.shape)
        ).exp_()
        factors = (row_max.double() - shift).exp_().to(values.dtype)
        column_sum = factors @ exponentials
        if min(factors.min().item(), column_sum.min().item()) > math.exp(-SAFE_NATS):
            return (
                row_max.double() + exponentials.sum(dim=1).double().log_(),
                shift.double() + column_sum.double().log_(),
            )
    return _lse_on_device(values, scratch)


def _lse_on_device(values: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor]:
    """The same without a check, which would stop a device at every tile. A softmax is one kernel
    there, and its largest entry is 1 by the sum."""
    row_max, column_max = values.amax(dim=1), values.amax(dim=0)
    inverse_sum = values.softmax(dim=1).amax(dim=1)
    exponentials = torch.sub(
        values, column_max, out=scratch.of("exponentials", values, *values.shape)
    ).exp_()
    return (
        row_max.double() - inverse_sum.double().log_(),
        column_max.double() + exponentials.sum(dim=0).double().log_(),
    )


def _softmax_both_ways(
    values: Tensor, row_lse: Tensor, column_lse: Tensor, scratch: _Scratch
) -> Tensor:
    """exp(Z - rows' lse) + exp(Z - columns' lse) of a tile, written over it where that is safe."""
    wanted, values = values.dtype, _precise(values)
    # The shift is the log-sum-exp as the tile's precision holds it; what that rounding dropped is
    # put back by a factor.
    shift = row_lse.to(values.dtype)
    if values.device.type == "cpu" and (shift.max() - column_lse.min()).item() < SAFE_NATS:
        exponentials = values.sub_(shift[:, None]).exp_()
        middle = row_lse.max()
        of_rows, factors = (shift - row_lse).exp_(), (shift - middle).exp_()
        of_columns = (middle - column_lse).exp_().to(values.dtype)
        # Two plain passes: addcmul of three broadcast tensors takes longer.
        both = scratch.of("factors", values, *values.shape)
        torch.mul(factors.to(values.dtype)[:, None], of_columns, out=both).add_(
            of_rows.to(values.dtype)[:, None]
        )
        return exponentials.mul_(both).to(wanted)
    return _softmax_on_device(values, row_lse, column_lse, scratch).to(wanted)


def _softmax_on_device(
    values: Tensor, row_lse: Tensor, column_lse: Tensor, scratch: _Scratch
) -> Tensor:
    """The same with one exponential and no check: exp(Z - r) + exp(Z - c) = exp(Z + log(exp(-r) +
    exp(-c)))."""
    both = torch.logaddexp(
        -row_lse.to(values.dtype)[:, None],
        -column_lse.to(values.dtype),
        out=scratch.of("factors", values, *values.shape),
    )
    return values.add_(both).exp_()


def _precise(values: Tensor) -> Tensor:
    """Small tiles on a CPU in double precision, where it costs nothing and keeps the digits of a
    loss near 0."""
    is_cheap = values.device.type == "cpu" and values.numel() <= SMALL_ENTRIES
    return values.double() if is_cheap else values


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Positives | None,
        tf32: bool,
    ) -> Tensor:
        matrix = _Matrix.of(rows, columns, scale, tf32)
        scratch, kept = _Scratch(), cast(list[Tensor], [])
        total = torch.zeros((), dtype=torch.float64, device=rows.device)
        for tile, values, _, _ in matrix.walk(scratch, kept, matrix.entries_to_keep(ctx)):
            values.add_(bias)
            # Nearly all of these are tiny and there are N per row: the tiles' sums meet in double
            # precision.
            if positives is None:
                matched = tile.matches(values).double().sum()
            else:
                weights, ignored = tile.weights(positives)
                matched = (weights * values).sum()
                values.masked_fill_(ignored, IGNORED)
            total += _softplus_sum(values).double() - matched
        ctx.save_for_backward(*matrix[:5], bias, *(positives or ()))
        ctx.kept, ctx.tf32 = kept, tf32
        return (total / len(rows)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fields, (bias, *others) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        matrix = _Matrix(*fields)._replace(tf32=ctx.tf32)
        positives = Positives(*others) if others else None
        of_bias = torch.zeros((), dtype=torch.float64, device=bias.device)

        def to_gradient(tile: _Tile, values: Tensor) -> Tensor:
            logits = values if tile.is_kept else values.add_(bias)
            if positives is None:
                gradient = logits.sigmoid_()
                tile.matches(gradient).sub_(1.0)
            else:
                weights, ignored = tile.weights(positives)
                gradient = logits.masked_fill_(ignored, IGNORED).sigmoid_()
                gradient.sub_(weights.to(gradient.dtype))
            of_bias.add_(gradient.sum())
            return gradient

        factor = grads[0] / len(matrix.rows)
        of_rows, of_columns, of_scale = matrix.gradients(ctx, _Scratch(), factor, to_gradient)
        return (
            of_rows,
            of_columns,
            of_scale,
            factor * of_bias.to(factor.dtype) if ctx.needs_input_grad[3] else None,
            None,
            None,
        )


def _softplus_sum(logits: Tensor) -> Tensor:
    if logits.device.type == "cpu":
        # softplus(z) = -logsigmoid(-z); torch's own softplus drops e^-z above 20.
        return -F.logsigmoid(-logits).sum()
    return F.softplus(logits, threshold=SAFE_NATS).sum()


class Matching(NamedTuple):
    """Which pairs match in addition to a sample's own.

    Args:
        keys: `[B]` int64; samples of equal keys match, negative ones equal nothing.
        weight: of such pairs, where there are no grades.
        grades: `[B]` in 0..1, of the pairs with a sample as second.
    """

    keys: Tensor
    weight: float = 1.0
    grades: Tensor | None = None


def _sides(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The side that stays, the side that travels, and whether the teacher stays: one that needs no
    gradient travels cheapest, as nothing has to come back."""
    if teacher.requires_grad and not student.requires_grad:
        return teacher, gather(student), True
    travels = gather(teacher) if teacher.requires_grad else gather_without_grad(teacher)
    return student, travels, False


def _positives(matching: Matching | None, *, is_flipped: bool) -> Positives | None:
    if matching is None:
        return None
    return Positives.of(matching.keys, matching.weight, matching.grades, is_flipped=is_flipped)


def _full(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Both sides in float32 or float64, and whether they are multiplied in TF32."""
    narrow = (torch.float16, torch.bfloat16)
    tf32 = student.dtype in narrow and teacher.dtype in narrow and _multiplies_tf32(student.device)
    return (
        student.float() if student.dtype in narrow else student,
        teacher.float() if teacher.dtype in narrow else teacher,
        tf32,
    )


def _multiplies_tf32(device: torch.device) -> bool:
    return device.type == "cuda"


def blocked_infonce(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
    matching: Matching | None = None,
) -> Float[Tensor, ""]:
    """Mean of the two directions' cross-entropies of `scale * cos(student, teacher)` over all
    ranks, for this rank's rows.

    The objective is symmetric, so the sides may be named either way. The loss's cotangent must be
    the same on every rank.
    """
    student, teacher, tf32 = _full(student, teacher)
    rows, columns, is_flipped = _sides(student, teacher)
    positives = _positives(matching, is_flipped=is_flipped)
    return cast(Tensor, _InfoNCE.apply(rows, columns, scale, positives, tf32))


def blocked_siglip(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    matching: Matching | None = None,
) -> Float[Tensor, ""]:
    """Sum over all pairs of softplus(-sign * (scale * <s, t> + bias)), for this rank's rows,
    divided by their number."""
    student, teacher, tf32 = _full(student, teacher)
    rows, columns, is_flipped = _sides(student, teacher)
    positives = _positives(matching, is_flipped=is_flipped)
    return cast(Tensor, _SigLIP.apply(rows, columns, scale, bias, positives, tf32))
