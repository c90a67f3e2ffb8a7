"""Variance, invariance and covariance regularization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.moments import centered, cross_squares
from vlkd_cli.distributed.collectives import all_reduce_sum
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import NonNegative, Positive


class VICReg(Distiller):
    """Bring matching features together, keep every feature's deviation above 1 and decorrelate the
    features of each side.

    L = w_i * mean((x - y)^2) + w_v * mean over both sides and features of max(0, 1 - sqrt(var +
    eps)) + w_c * sum over both sides of the squared off-diagonal covariances divided by the width.
    Features are not normalized: their deviations could never reach 1. Variances (unbiased) and
    covariances are those of the whole batch on all ranks. One row has neither: only the constant of
    the hinge remains.

    Args:
        invariance_weight: w_i, of the squared distance.
        variance_weight: w_v, of the hinge on the deviations.
        covariance_weight: w_c, of the covariances.
        eps: added to the variance below the root.

    Source: Bardes et al., VICReg, ICLR 2022, arXiv:2105.04906, equations 1 to 6;
    facebookresearch/vicreg, main_vicreg.py. The covariances' sum comes from the batch's Gram matrix
    where the batch is smaller than the width.
    """

    direction = "symmetric"
    minimum_batch = 2
    crosses_ranks = "sums, and features of both sides (or their covariances), with gradient"
    paper = "Bardes et al. 2022, arXiv:2105.04906"
    formula = (
        r"L = \frac{w_i}{N D} \|X - Y\|^2 + \frac{w_v}{2D} \sum_{F \in \{X, Y\}} \sum_{d}"
        r" \max\left(0, 1 - \sqrt{\mathrm{Var}(F_d) + \epsilon}\right) + \frac{w_c}{D}"
        r" \sum_{F \in \{X, Y\}} \sum_{d \neq e} \mathrm{Cov}(F)_{de}^2"
    )

    def __init__(
        self,
        *,
        invariance_weight: NonNegative = 25.0,
        variance_weight: NonNegative = 25.0,
        covariance_weight: NonNegative = 1.0,
        eps: Positive = 1e-4,
    ) -> None:
        super().__init__()
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight
        self.eps = eps

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        loss = self.invariance_weight * F.mse_loss(student, teacher)
        for side in (student, teacher):
            rows = centered(side)
            freedom = max(len(side) * world_size() - 1, 1)
            if self.variance_weight:
                variance = all_reduce_sum(rows.square().sum(dim=0)) / freedom
                loss = (
                    loss
                    + self.variance_weight / 2 * F.relu(1 - torch.sqrt(variance + self.eps)).mean()
                )
            if self.covariance_weight:
                off_diagonal, _ = cross_squares(rows, rows)
                loss = loss + self.covariance_weight / side.shape[1] / freedom**2 * off_diagonal
        return loss
