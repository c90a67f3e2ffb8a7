"""Redundancy reduction by the cross-correlation of two sides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.moments import centered, cross_squares
from vlkd_cli.distributed.collectives import all_reduce_sum
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import NonNegative, Positive


class BarlowTwins(Distiller):
    """Drive the cross-correlation matrix of the two sides' features towards the identity.

    L = sum_j (c_jj - 1)^2 + w * sum_{j != k} c_jk^2, where c is the correlation over the whole
    batch on all ranks and w the off-diagonal weight. Each feature is standardized here over that
    batch (biased variance); there are no running statistics. Identical sides do not give 0: a
    finite batch leaves chance correlations.

    Args:
        off_diagonal_weight: weight of the off-diagonal entries.
        eps: added to the variance below the root.

    Source: Zbontar et al., Barlow Twins, ICML 2021, arXiv:2103.03230, equations 1 and 2;
    facebookresearch/barlowtwins, main.py. Differs in the gradient over ranks, which is exact here
    and 1/W there, and in using the batch's Gram matrices where the batch is smaller than the width.
    """

    direction = "symmetric"
    minimum_batch = 2
    crosses_ranks = "sums, and features of both sides (or their correlation), with gradient"
    paper = "Zbontar et al. 2021, arXiv:2103.03230"
    formula = (
        r"L = \sum_j (c_{jj} - 1)^2 + w \sum_{j \neq k} c_{jk}^2, \quad c_{jk} ="
        r" \frac{1}{N} \sum_i \hat{x}_{ij} \hat{y}_{ik}"
    )

    def __init__(self, *, off_diagonal_weight: NonNegative = 0.0051, eps: Positive = 1e-5) -> None:
        super().__init__()
        self.off_diagonal_weight = off_diagonal_weight
        self.eps = eps

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        rows = len(student) * world_size()
        off_diagonal, diagonal = cross_squares(
            self._standardized(student, rows), self._standardized(teacher, rows)
        )
        return (
            diagonal / rows - 1
        ).square().sum() + self.off_diagonal_weight * off_diagonal / rows**2

    def _standardized(self, features: Tensor, rows: int) -> Tensor:
        shifted = centered(features)
        variance = all_reduce_sum(shifted.square().sum(dim=0)) / rows
        return shifted * torch.rsqrt(variance + self.eps)
