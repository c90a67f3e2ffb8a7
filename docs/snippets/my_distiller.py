"""A training objective of one's own: see docs/add_a_distiller.md."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import mean_without_grad
from vlkd_cli.recipe.types import Probability, Progress


class CenteredCosine(Distiller):
    """Turn the student towards the teacher, after the mean teacher feature is subtracted.

    Text features often share a large common part; what is left without it distinguishes the
    samples.

    Args:
        momentum: of the running mean; 0 uses the mean of the last step only.
    """

    direction = "one_way"  # the teacher is detached
    crosses_ranks = "the teacher's mean, after the step"

    center: Tensor

    def __init__(self, *, momentum: Probability = 0.9) -> None:
        super().__init__()
        self.momentum = momentum

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(teacher, int)  # a tuple only where a side takes several outputs
        self.register_buffer("center", torch.zeros(teacher))

    def forward(
        self,
        student: Float[Tensor, "B D"],  # rows of one output
        teacher: Float[Tensor, "B D"],  # the same letter: refused where the widths differ
    ) -> Float[Tensor, ""]:
        teacher = teacher.detach()
        self.stage(teacher.mean(0))  # remembered, not yet used: forward writes no state
        return (1 - (unit(student) * unit(teacher - self.center)).sum(1)).mean()

    def commit(self, progress: Progress) -> None:
        means = [mean_without_grad(mean) for (mean,) in self.take_staged()]
        if means:
            self.center.lerp_(torch.stack(means).mean(0), 1 - self.momentum)
