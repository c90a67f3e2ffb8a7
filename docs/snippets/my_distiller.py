"""A training objective of one's own: see docs/add_a_distiller.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Context, Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import mean_without_grad
from vlkd_cli.recipe.types import Probability


class CentredCosine(Distiller):
    """Turn the student towards the teacher, after the mean teacher feature is taken away.

    Text features often share a large common part; without it, what is left tells the samples apart.

    Args:
        momentum: of the running mean; 0 keeps the mean of the last step only.
    """

    direction = "one_way"  # the teacher is detached
    needs = frozenset({"equal_width"})  # refused, with the head to add, where the widths differ
    crosses_ranks = "the teacher's mean, after the step"

    centre: Tensor

    def __init__(self, *, momentum: Probability = 0.9) -> None:
        super().__init__()
        self.momentum = momentum

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        assert isinstance(teacher_width, int)  # a list only where a side of the arrow is one
        self.register_buffer("centre", torch.zeros(teacher_width))

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        teacher = teacher.detach()
        self.stage(teacher.mean(0))  # remembered, not yet used: forward writes no state
        return (1 - (unit(student) * unit(teacher - self.centre)).sum(1)).mean()

    def commit(self, step: int) -> None:
        means = [mean_without_grad(mean) for (mean,) in self.take_staged()]
        if means:
            self.centre.lerp_(torch.stack(means).mean(0), 1 - self.momentum)
