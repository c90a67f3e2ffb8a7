"""Normalized temperature-scaled cross-entropy over both views (SimCLR), in tiles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.numerics.autograd import Context
from vlkd_cli.recipe.types import Positive

TILE_ENTRIES = 2**20


class NTXent(Distiller):
    """Find each row's other view among the rows of both views, itself left out.

    With z the 2N rows of both sides, L = mean_i [lse_{j != i}(z_i . z_j / temperature) - z_i .
    z_match(i) / temperature]; both sides learn. Unlike `infonce` the rows of a row's own view are
    negatives too.

    Args:
        temperature: divides the cosines.

    Source: Chen et al., SimCLR, ICML 2020, arXiv:2002.05709, equation 1. Differs in the gradient
    over ranks, which is exact here; the 2N x 2N matrix is never held.
    """

    direction = "symmetric"
    crosses_ranks = "rows of both sides, and a number for each row"
    minimum_batch = 2
    paper = "Chen et al., ICML 2020, arXiv:2002.05709"
    formula = (
        r"L = \frac{1}{2N} \sum_{i=1}^{2N} \left[ \log \sum_{j \neq i} e^{z_i \cdot z_j /"
        r" \tau} - \frac{z_i \cdot z_{m(i)}}{\tau} \right]"
    )

    def __init__(self, *, temperature: Positive = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        rows = torch.cat([unit(student), unit(teacher)])
        return cast(Tensor, _NTXent.apply(rows, self.temperature))


class _NTXent(torch.autograd.Function):
    """Value and gradient in two walks over the tiles.

    S = z z^T / temperature is symmetric, so row i of the gradient needs only row i of S and the
    log-sum-exps of all rows: dL/dz_i = sum_{j != i} [exp(S_ij - lse_i) + exp(S_ij - lse_j)] z_j
    - 2 z_match(i), over 2N temperature. Ranks exchange rows and log-sum-exps, never gradients. The
    gradient here is of the mean over this rank's rows, as every objective's.
    """

    @staticmethod
    def forward(ctx: Context, own: Tensor, temperature: float) -> Tensor:
        every = gather_without_grad(own)
        count, first = len(own), rank() * len(own)
        half = count // 2
        matches = torch.cat([own[half:], own[:half]])
        cosines = (own * matches).sum(dim=1) / temperature
        lse = own.new_empty(count)
        for part, logits in _tiles(own, every, first, temperature):
            lse[part] = logits.logsumexp(dim=1)
        ctx.save_for_backward(None)
        if ctx.needs_input_grad[0]:
            every_lse = gather_without_grad(lse)
            gradient = torch.empty_like(own)
            for part, logits in _tiles(own, every, first, temperature):
                weights = (logits - lse[part, None]).exp_()
                weights += logits.sub_(every_lse).exp_()
                gradient[part] = weights @ every
            ctx.save_for_backward(gradient.sub_(matches, alpha=2).div_(count * temperature))
        return (lse - cosines).mean()

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None


def _tiles(
    own: Tensor, every: Tensor, first: int, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """Logits of some own rows to all rows at a time, -inf at the row itself."""
    height = max(1, TILE_ENTRIES // len(every))
    for top in range(0, len(own), height):
        part = slice(top, min(top + height, len(own)))
        logits = own[part] @ every.T / temperature
        logits.diagonal(first + top).fill_(-torch.inf)
        yield part, logits
