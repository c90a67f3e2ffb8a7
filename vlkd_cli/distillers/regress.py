"""Regression of targets as they are."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller


class Regress(Distiller):
    """Mean distance of every entry to the teacher's, nothing normalized.

    Rows or positions; for masked image modeling the teacher is a head that reads the input:
    `student: image.paint, teacher: image.pixels`, both with `at: hidden`.

    Args:
        distance: "l2", the squared difference, "l1", the absolute one, or "smooth_l1", Huber with
            beta 1.

    Source: He et al., MAE, CVPR 2022, arXiv:2111.06377 (l2); Xie et al., SimMIM, CVPR 2022,
    arXiv:2111.09886 (l1).
    """

    direction = "one_way"
    crosses_ranks = "nothing"
    paper = "He et al., CVPR 2022, arXiv:2111.06377"
    formula = (
        r"L = \frac{1}{N D} \sum_{i,d} \delta(s_{id} - t_{id}),"
        r" \quad \delta(r) = r^2 \text{ (l2)}, \ |r| \text{ (l1)}, \ H(r) \text{ (Huber)}"
    )

    def __init__(self, *, distance: Literal["l2", "l1", "smooth_l1"] = "l2") -> None:
        super().__init__()
        self.distance = {"l2": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[distance]

    def forward(
        self, student: Float[Tensor, "... D"], teacher: Float[Tensor, "... D"]
    ) -> Float[Tensor, ""]:
        return self.distance(student, teacher.detach())
