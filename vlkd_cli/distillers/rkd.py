"""Relational knowledge distillation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.angle import angle_loss, pairs_of
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.recipe.types import NonNegative


class RKD(Distiller):
    """Match the student's pairwise distances and angles to the teacher's.

    Only relations inside the batch are compared, those between ranks included, so the two towers
    may have different widths. Distances are divided by their mean over the batch. Rows too close
    for a direction (identical captions) count as angle 0 and get no gradient from that pair; the
    authors divide by 1e-12 there, which explodes. Batches of fewer than 3 rows have no angles, of 1
    row no distances: these terms are 0.

    Args:
        distance_weight: weight of the distance term; 0 turns it off.
        angle_weight: weight of the angle term, whose cost grows as N**3; 0 turns it off.
        normalize: which sides are normalized here: the authors' choice is the teacher only.
        compat: "itra" normalizes both sides and, where the weights are left at their defaults,
            weighs distances 0.5 and angles 1.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068, section
    3.2; lenscloth/RKD, metric/loss.py, with its means over all N^2 and N^3 entries, degenerate ones
    included. Differs in relating rows of all ranks.
    """

    direction = "one_way"
    minimum_batch = 3
    crosses_ranks = "features of both sides, the student's with gradient"
    paper = "Park et al. 2019, arXiv:1904.05068"
    formula = (
        r"L = \frac{w_d}{N^2} \sum_{i,j}"
        r" H\left(\frac{\|s_i - s_j\|}{\mu_s} - \frac{\|t_i - t_j\|}{\mu_t}\right)"
        r" + \frac{w_a}{N^3} \sum_{i,j,k}"
        r" H\left(\cos \angle s_j s_i s_k - \cos \angle t_j t_i t_k\right),"
        r" \quad H \text{ Huber with beta 1}"
    )

    def __init__(
        self,
        *,
        distance_weight: NonNegative = 1.0,
        angle_weight: NonNegative = 2.0,
        normalize: Literal["teacher", "both", "none"] = "teacher",
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        if compat == "itra":
            normalize = "both"
            if (distance_weight, angle_weight) == (1.0, 2.0):
                distance_weight, angle_weight = 0.5, 1.0
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.normalize = normalize

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B E"]
    ) -> Float[Tensor, ""]:
        ours = gather(unit(student) if self.normalize == "both" else student)
        theirs = gather_without_grad(teacher if self.normalize == "none" else unit(teacher))
        first, rows = rank() * len(student), len(student)
        loss = 0 * student.sum()
        if self.distance_weight and len(ours) > 1:
            difference = (
                _relative_distances(ours)[first : first + rows]
                - _relative_distances(theirs)[first : first + rows]
            )
            huber = F.smooth_l1_loss(difference, torch.zeros_like(difference))
            loss = loss + self.distance_weight * huber
        if self.angle_weight and len(ours) > 2:
            loss = loss + self.angle_weight * angle_loss(ours, theirs, first, rows)
        return loss


def _relative_distances(features: Float[Tensor, "N D"]) -> Float[Tensor, "N N"]:
    """Distances of all pairs divided by their mean; the mean carries its gradient.

    Pairs closer than the rounding error get the distance 1e-6 and no gradient, which corresponds
    to the authors' bound of 1e-12 on the square.
    """
    pairs = pairs_of(features)
    squares = torch.where(pairs.distinct, pairs.squares, 1.0).clamp_min(1e-12)
    distances = torch.where(pairs.distinct, squares.sqrt(), 1e-6)
    distances = distances.masked_fill(
        torch.eye(len(features), dtype=torch.bool, device=features.device), 0
    )
    # Every distance off the diagonal is positive, so the mean over positive ones needs no search
    # for them.
    return distances * (len(features) * (len(features) - 1) / distances.sum())
