"""Hard negatives of a contrast between pairs: texts or pictures of samples that match nothing.

Logits e_ik = s <x_i, n_k> (+ b) of the rows of one side with negatives of the other side's kind.
Negatives of text occur only in the image's direction and the reverse, as they have no match of
their own. Tiles are computed again in the backward pass, so that nothing of size B x K is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkd_cli.distillers.tiles import IGNORED, Matrix, Scratch, full_precision, precise
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.numerics.autograd import Context

Side = Literal["student", "teacher"]


class Negatives(NamedTuple):
    """One negative of each sample.

    Args:
        values: `[B, D]`.
        side: which side's kind they are of; the rows of the other are compared with them.
        keys: `[B]` int64 of texts; -1 where a sample has none. None: every sample has one, which
            equals nothing.
        row_keys: `[B]` int64 of the samples' own texts; a negative of an equal key is left out.
    """

    values: Tensor
    side: Side
    keys: Tensor | None = None
    row_keys: Tensor | None = None


def against(
    rows: Tensor,
    negatives: Sequence[Negatives],
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    own_only: bool = False,
) -> Tensor:
    """What each of this rank's rows makes of negatives: without a bias the log-sum-exp of their
    logits, else the sum of their softplus, `[B]` float64.

    Args:
        rows: `[B, D]`.
        negatives: of the other side's kind, at least one.
        own_only: only a row's own negatives; else those of all rows, on every rank.
    """
    values = torch.cat([each.values for each in negatives])
    rows, values, tf32 = full_precision(rows, values)
    keys, row_keys = _keys(rows, negatives)
    if own_only:
        return _own(rows, values, keys, row_keys, scale, bias)
    values = gather(values) if values.requires_grad else gather_without_grad(values)
    keys = gather_without_grad(keys)
    found = _Against.apply(rows, values, scale, bias, row_keys, keys, tf32)
    return cast(Tensor, found)


NOTHING, MISSING = -2, -1
"""Keys of a negative that equals nothing, and of one that is not there."""


def _keys(rows: Tensor, negatives: Sequence[Negatives]) -> tuple[Tensor, Tensor]:
    """Keys of all negatives, and of the rows."""
    count = len(rows)
    nothing = torch.full((count,), NOTHING, dtype=torch.int64, device=rows.device)
    keys = torch.cat([nothing if each.keys is None else each.keys for each in negatives])
    own = [each.row_keys for each in negatives if each.row_keys is not None]
    return keys, own[0] if own else torch.full_like(nothing, MISSING)


def _left_out(row_keys: Tensor, keys: Tensor) -> Tensor:
    """Which negatives do not count for which rows."""
    return (keys == MISSING) | ((row_keys == keys) & (row_keys >= 0))


def _own(
    rows: Tensor,
    values: Tensor,
    keys: Tensor,
    row_keys: Tensor,
    scale: Tensor,
    bias: Tensor | None,
) -> Tensor:
    count = len(rows)
    several = F.normalize(values, dim=1, eps=1e-12).view(-1, count, values.shape[1])
    logits = scale * torch.einsum("bd,kbd->bk", F.normalize(rows, dim=1, eps=1e-12), several)
    left_out = _left_out(row_keys[:, None], keys.view(-1, count).T)
    if bias is None:
        return logits.double().masked_fill(left_out, IGNORED).logsumexp(dim=1)
    return F.softplus((logits + bias).double().masked_fill(left_out, IGNORED)).sum(dim=1)


class _Against(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        row_keys: Tensor,
        keys: Tensor,
        tf32: bool,
    ) -> Tensor:
        matrix = Matrix.of(rows, columns, scale, tf32)
        stored = cast(list[Tensor], [])
        start = -torch.inf if bias is None else 0.0
        found = torch.full((len(rows),), start, dtype=torch.float64, device=rows.device)
        for tile, values, _, _ in matrix.walk(Scratch(), stored, matrix.entries_to_store(ctx)):
            if bias is not None:
                values.add_(bias)
            values.masked_fill_(_left_out(row_keys[tile.rows, None], keys[tile.columns]), IGNORED)
            if bias is None:
                own = precise(values).logsumexp(dim=1).double()
                found[tile.rows] = torch.logaddexp(found[tile.rows], own)
            else:
                # softplus(z) = -logsigmoid(-z); torch's own softplus drops e^-z above 20.
                found[tile.rows] -= F.logsigmoid(-precise(values)).sum(dim=1, dtype=torch.float64)
        others = () if bias is None else (bias,)
        ctx.save_for_backward(*matrix[:5], row_keys, keys, found, *others)
        ctx.stored, ctx.tf32 = stored, tf32
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        fields, (row_keys, keys, found, *others) = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        matrix, bias = Matrix(*fields)._replace(tf32=ctx.tf32), (others or [None])[0]
        of_bias = torch.zeros((), dtype=torch.float64, device=found.device)

        def to_gradient(tile: Any, values: Tensor) -> Tensor:
            if bias is not None and not tile.is_stored:
                values.add_(bias)
            values.masked_fill_(_left_out(row_keys[tile.rows, None], keys[tile.columns]), IGNORED)
            if bias is None:
                slopes = (precise(values) - found[tile.rows, None]).exp_()
            else:
                slopes = precise(values).sigmoid()
            gradient: Tensor = (slopes * grads[0][tile.rows, None]).to(values.dtype)
            of_bias.add_(gradient.sum())
            return gradient

        one = torch.ones((), dtype=matrix.rows.dtype, device=found.device)
        gradients = matrix.gradients(ctx, Scratch(), one, to_gradient)
        of_bias_too = None if bias is None else of_bias.to(bias.dtype)
        return (*gradients, of_bias_too, None, None, None)
