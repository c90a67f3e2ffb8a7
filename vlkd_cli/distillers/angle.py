"""RKD's angle term through Gram matrices, streamed over vertices, its gradient computed in the same
pass.

At vertex i, with offsets v_j = e_j - e_i of length 1 / w_j, the cosine between v_j and v_k is A_jk
= w_j w_k M_jk with M_jk = <v_j, v_k> = G_jk - G_ij - G_ik + G_ii, G the Gram matrix. So the N x N
cosines of a vertex come from G without a product over the width. With g = H'(A_student -
A_teacher), symmetric, and P_jk = g_jk w_j w_k = dL/dM_jk:

    dL/dG_jk += P_jk,   dL/dG_ij += -2 sum_k P_jk,   dL/dG_ii += sum_jk P_jk,
    dL/d|v_j|^2 = -w_j^2 sum_k g_jk A_jk,   where |v_j|^2 = G_jj - 2 G_ij + G_ii,

and dL/de = (dL/dG + dL/dG^T) e. A vertex therefore costs some twenty passes over N x N numbers, and
all of it holds four such matrices.

Pairs closer than the rounding error have no direction: their w is 0, so their cosines are 0, count
in the mean and get no gradient.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.numerics.autograd import Context

BLOCK_ENTRIES = 2**18
"""Entries of the blocks that are worked on at a time on a CPU: 1 MiB in float32 stays in its
cache."""


class Pairs(NamedTuple):
    """Gram matrix `[N, N]` of centered rows, squared distances between them, and which pairs are
    distinguishable."""

    gram: Tensor
    squares: Tensor
    distinct: Tensor


def pairs_of(features: Float[Tensor, "N D"]) -> Pairs:
    """Products and squared distances of all pairs of rows.

    The rows' mean is subtracted first: distances do not see it, but the Gram form loses digits to
        it.
    """
    rows = features - features.mean(dim=0).detach()
    gram = rows @ rows.T
    lengths = gram.diagonal()
    sums = lengths[:, None] + lengths[None, :]
    squares = sums - 2 * gram
    distinct = squares > (8 * torch.finfo(gram.dtype).eps * sums).clamp_min(1e-24)
    distinct.fill_diagonal_(False)
    return Pairs(gram, squares, distinct)


class _AngleLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, student: Tensor, teacher: Tensor, first: int, vertices: int
    ) -> Tensor:
        mean = student.mean(dim=0)
        rows = student - mean
        ours, theirs = pairs_of(student), pairs_of(teacher)
        num_rows = len(student)
        wants_gradient = ctx.needs_input_grad[0]
        of_gram = torch.zeros_like(ours.gram)
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        our_inverse = _inverse_distances(ours)
        their_inverse = _inverse_distances(theirs)
        block = num_rows if student.device.type != "cpu" else max(1, BLOCK_ENTRIES // num_rows)
        cosines, against, products = (
            torch.empty(min(block, num_rows), num_rows, dtype=rows.dtype, device=rows.device)
            for _ in range(3)
        )
        for vertex in range(first, first + vertices):
            # M_jk = G_jk - a_j - a_k with a_j = G_ij - G_ii / 2.
            our_shift = ours.gram[vertex] - ours.gram[vertex, vertex] / 2
            their_shift = theirs.gram[vertex] - theirs.gram[vertex, vertex] / 2
            weight, their_weight = our_inverse[vertex], their_inverse[vertex]
            of_squares = torch.empty_like(weight)
            row_sums = torch.empty_like(weight)
            for top in range(0, num_rows, block):
                some = slice(top, min(top + block, num_rows))
                height = some.stop - top
                cosine = _cosines(ours.gram[some], our_shift, weight, some, cosines[:height])
                difference = _cosines(
                    theirs.gram[some], their_shift, their_weight, some, against[:height]
                )
                torch.sub(cosine, difference, out=difference)
                # Huber with beta 1 is g (r - g / 2) with g = clamp(r, -1, 1), its own derivative.
                slope = torch.clamp(difference, -1, 1, out=products[:height])
                total += (
                    torch.dot(slope.view(-1), difference.view(-1))
                    - torch.dot(slope.view(-1), slope.view(-1)) / 2
                ).double()
                if wants_gradient:
                    of_squares[some] = -weight[some].square() * cosine.mul_(slope).sum(dim=1)
                    row_sums[some] = weight[some] * (slope @ weight)
                    of_gram[some].addcmul_(slope.mul_(weight[some, None]), weight[None, :])
            if wants_gradient:
                diagonal = of_gram.diagonal()
                diagonal += of_squares
                diagonal[vertex] += row_sums.sum() + of_squares.sum()
                of_gram[vertex].sub_(2 * (row_sums + of_squares))
        factor = 1 / (vertices * num_rows**2)
        if wants_gradient:
            ctx.save_for_backward(((of_gram + of_gram.T) @ rows).mul_(factor))
        return (total * factor).to(student.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None, None


def _inverse_distances(pairs: Pairs) -> Tensor:
    return torch.where(pairs.distinct, pairs.squares, torch.inf).rsqrt_()


def _cosines(gram: Tensor, shift: Tensor, weight: Tensor, some: slice, out: Tensor) -> Tensor:
    torch.sub(gram, shift[None, :], out=out)
    return out.sub_(shift[some, None]).mul_(weight[None, :]).mul_(weight[some, None])


def angle_loss(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"], first: int, vertices: int
) -> Float[Tensor, ""]:
    """Mean Huber difference between the cosines at `vertices` rows from `first` on, over all pairs
    of the N rows.

    No gradient flows to the teacher. Equal over ranks when each takes its own rows as vertices and
    both sides are gathered.
    """
    return cast(Tensor, _AngleLoss.apply(student, teacher.detach(), first, vertices))
