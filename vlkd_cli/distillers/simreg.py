"""Regression of the teacher's normalized feature."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import unit


class SimReg(Distiller):
    """Move every student feature onto its teacher feature, both L2-normalized here.

    A mean over rows (and positions), so nothing is exchanged between ranks. A zero row counts with
    the distance from the origin and gets no gradient worth speaking of. The authors train a 4-layer
    MLP head on the student, which is a head of the recipe here.

    Args:
        distance: "l2" sums the squared differences over the features, which is 2 - 2 cos; "l1" and
            "smooth_l1" (Huber with beta 1) average over the features as well, as they have no
            definition but ITRA's.
        compat: "itra" averages "l2" over the features too: the value divided by the width.

    Source: Navaneet et al., SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
    Knowledge Distillation, BMVC 2021, arXiv:2201.05131; UCDvision/simreg, simreg.py. Its
    `mse_nonorm` flag has no effect there and is not a key here.
    """

    direction = "one_way"
    paper = "Navaneet et al. 2021, arXiv:2201.05131"
    formula = (
        r"L = \frac{1}{N} \sum_i \left\| \frac{x_i}{\|x_i\|} - \frac{y_i}{\|y_i\|}"
        r" \right\|^2"
    )

    def __init__(
        self,
        *,
        distance: Literal["l2", "l1", "smooth_l1"] = "l2",
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        self.distance = distance
        self.averages_features = compat == "itra" or distance != "l2"

    def forward(
        self,
        student: Float[Tensor, "... D"],
        teacher: Float[Tensor, "... D"],
    ) -> Float[Tensor, ""]:
        ours, theirs = unit(student), unit(teacher.detach())
        if self.distance == "l1":
            return F.l1_loss(ours, theirs)
        if self.distance == "smooth_l1":
            return F.smooth_l1_loss(ours, theirs)
        # Squared differences rather than 2 - 2 cos: near convergence the latter subtracts two equal
        # numbers.
        return F.mse_loss(ours, theirs) * (1 if self.averages_features else ours.shape[-1])
