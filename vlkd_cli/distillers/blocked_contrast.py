"""InfoNCE and SigLIP over tiles of the similarity matrix, with the exact gradient.

A rank multiplies its own B rows with the gathered N columns, once, tile by tile. Its rows'
log-sum-exps are complete by themselves; those of the columns are completed by exchanging N numbers
per rank. Nothing of size B x N is ever held (`tiles.py`).

Derivation. With Z = s X Y^T, rows r_i = lse_j Z_ij, columns c_j = lse_i Z_ij and L = mean_i (r_i +
c_i) / 2 - mean_i Z_ii, dL/dZ_ij = (exp(Z_ij - r_i) + exp(Z_ij - c_j)) / 2N - [i = j] / N. Both
exponentials share one factor: with any m, exp(Z_ij - r_i) + exp(Z_ij - c_j) = exp(Z_ij - r_i) (1 +
exp(r_i - m) exp(m - c_j)), so a tile costs one exponential, not two.

Where samples match off the diagonal (`Positives`), the matched term is sum_j P_ij Z_ij with P =
W by its row sums, and for columns Q = W^T by its own: the mean over positives is outside of the
logarithm, so each of them has a gradient. dL/dZ = (softmax of rows + softmax of columns - P - Q^T)
/ 2N, and for the sigmoid loss (sigmoid(Z) - W) / N.

Further negatives of a direction only enlarge its log-sum-exps: r_i becomes log(exp r_i + exp e_i),
with the same softmaxes and the gradient exp(e_i - r_i) / 2N to e_i (`negatives.py`).
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkd_cli.distillers.positives import Positives
from vlkd_cli.distillers.tiles import IGNORED, Matrix, Scratch, Tile, full_precision, precise
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.numerics.autograd import Context

SAFE_NATS = 60.0
"""A tile whose row and column log-sum-exps all lie this close to its maximum may share one shift:
e^-60 is far above float32's smallest normal number, and what underflows next to it is below a
relative 1e-11."""


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        positives: Positives | None,
        tf32: bool,
        row_negatives: Tensor | None,
        column_negatives: Tensor | None,
    ) -> Tensor:
        matrix = Matrix.of(rows, columns, scale, tf32)
        scratch, stored = Scratch(), cast(list[Tensor], [])
        # The running sums are few, so double precision is free and no rounding piles up over the
        # tiles.
        row_lse = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=rows.device)
        column_lse = torch.full(
            (len(columns),), -torch.inf, dtype=torch.float64, device=rows.device
        )
        matched = torch.zeros((), dtype=torch.float64, device=rows.device)
        column_matched = torch.zeros_like(column_lse)
        for tile, values, _, _ in matrix.walk(scratch, stored, matrix.entries_to_store(ctx)):
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
        of_negatives: list[Tensor | None] = [None, None]
        if row_negatives is not None:
            row_lse = torch.logaddexp(row_lse, row_negatives)
            of_negatives[0] = (row_negatives - row_lse).exp_()
        if column_negatives is not None:
            column_lse = torch.logaddexp(column_lse, gather_without_grad(column_negatives))
            of_negatives[1] = (column_negatives - column_lse[own]).exp_()
        ctx.save_for_backward(*matrix[:5], row_lse, column_lse, *(positives or ()))
        ctx.of_negatives, ctx.stored, ctx.tf32 = of_negatives, stored, tf32
        if positives is not None:
            column_matched = gather_without_grad(column_matched).view(world_size(), -1).sum(dim=0)
            matched += column_matched[own].sum() / 2
        return (((row_lse + column_lse[own]).sum() / 2 - matched) / len(rows)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fields, (row_lse, column_lse, *others) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        matrix, scratch = Matrix(*fields)._replace(tf32=ctx.tf32), Scratch()
        positives = Positives(*others) if others else None

        def to_gradient(tile: Tile, values: Tensor) -> Tensor:
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
        of_negatives = [None if each is None else factor * each for each in ctx.of_negatives]
        return (*matrix.gradients(ctx, scratch, factor, to_gradient), None, None, *of_negatives)


def _lse_both_ways(values: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of a tile's rows and columns, in float64."""
    values = precise(values)
    if values.device.type == "cpu":
        # With the rows' maxima m_i and the tile's maximum M: a row's maximum, often its match, is
        # exactly 1 in exp(Z_ij - m_i), which preserves the digits of its loss; exp(Z_ij - M) is
        # the product with exp(m_i - M).
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


def _lse_on_device(values: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
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
    values: Tensor, row_lse: Tensor, column_lse: Tensor, scratch: Scratch
) -> Tensor:
    """exp(Z - rows' lse) + exp(Z - columns' lse) of a tile, written over it where that is safe."""
    wanted, values = values.dtype, precise(values)
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
    values: Tensor, row_lse: Tensor, column_lse: Tensor, scratch: Scratch
) -> Tensor:
    """The same with one exponential and no check: exp(Z - r) + exp(Z - c) = exp(Z + log(exp(-r) +
    exp(-c)))."""
    both = torch.logaddexp(
        -row_lse.to(values.dtype)[:, None],
        -column_lse.to(values.dtype),
        out=scratch.of("factors", values, *values.shape),
    )
    return values.add_(both).exp_()


class _SigLIP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        positives: Positives | None,
        tf32: bool,
    ) -> Tensor:
        matrix = Matrix.of(rows, columns, scale, tf32)
        scratch, stored = Scratch(), cast(list[Tensor], [])
        total = torch.zeros((), dtype=torch.float64, device=rows.device)
        for tile, values, _, _ in matrix.walk(scratch, stored, matrix.entries_to_store(ctx)):
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
        ctx.stored, ctx.tf32 = stored, tf32
        return (total / len(rows)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fields, (bias, *others) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        matrix = Matrix(*fields)._replace(tf32=ctx.tf32)
        positives = Positives(*others) if others else None
        of_bias = torch.zeros((), dtype=torch.float64, device=bias.device)

        def to_gradient(tile: Tile, values: Tensor) -> Tensor:
            logits = values if tile.is_stored else values.add_(bias)
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
        of_rows, of_columns, of_scale = matrix.gradients(ctx, Scratch(), factor, to_gradient)
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


class Extra(NamedTuple):
    """A number for each of this rank's rows of a side, `[B]` float64, or None."""

    of_student: Tensor | None = None
    of_teacher: Tensor | None = None


NONE = Extra()


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


def blocked_infonce(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
    matching: Matching | None = None,
    negatives: Extra = NONE,
) -> Float[Tensor, ""]:
    """Mean of the two directions' cross-entropies of `scale * cos(student, teacher)` over all
    ranks, for this rank's rows.

    The objective is symmetric, so the sides may be named either way. The loss's cotangent must be
    the same on every rank.

    Args:
        negatives: log-sum-exps of further logits in the denominators of a direction.
    """
    student, teacher, tf32 = full_precision(student, teacher)
    rows, columns, is_flipped = _sides(student, teacher)
    positives = _positives(matching, is_flipped=is_flipped)
    extra = negatives[::-1] if is_flipped else negatives
    return cast(Tensor, _InfoNCE.apply(rows, columns, scale, positives, tf32, *extra))


def blocked_siglip(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    matching: Matching | None = None,
) -> Float[Tensor, ""]:
    """Sum over all pairs of softplus(-sign * (scale * <s, t> + bias)), for this rank's rows,
    divided by their number."""
    student, teacher, tf32 = full_precision(student, teacher)
    rows, columns, is_flipped = _sides(student, teacher)
    positives = _positives(matching, is_flipped=is_flipped)
    return cast(Tensor, _SigLIP.apply(rows, columns, scale, bias, positives, tf32))
