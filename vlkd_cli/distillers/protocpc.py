"""Prototypical contrastive predictive coding."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.prototype_loss import (
    Sides,
    Targets,
    prototype_loss,
    softmax_targets,
    teacher_logits,
    tiles,
)
from vlkd_cli.distillers.prototypes import PrototypeDistiller, Views
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import (
    Positive,
    PositiveInt,
    PositiveSchedulable,
    Probability,
    Progress,
)

SMALLEST_PRIOR = 1e-6
"""A prototype that the teacher no longer uses retains this fraction of a uniform prior, else
nothing would push students away from it again."""


class ProtoCPC(PrototypeDistiller):
    """Match assignments to prototypes, contrasted with how often the teacher has used each
    prototype.

    L = mean_i [-<p_i, z_i> + log sum_k prior_k exp(z_ik)], z the student's logits over its
    temperature and p the teacher's assignment: a softmax at its temperature, or its Sinkhorn
    balancing over
    prototypes and the rows of all ranks, computed with logarithms. The prior starts at 1 for each
    prototype (mean 1, so that it adds log K to the value of a distribution) and follows the mean of
    p after each step.

    By default the inputs are bottleneck features of equal width and the prototype layer, one for
    both sides, belongs to this objective; with `num_prototypes: null` the inputs are logits of
    towers with head `prototypes`. Lists of views are paired as in DINO.

    Args:
        prior_momentum: fraction of the old prior that remains.
        assignment: how the teacher's logits become targets.
        num_iterations: balancing rounds, prototypes first and rows last.

    Source: Lee, Representation Distillation by Prototypical Contrastive Predictive Coding, ICLR
    2022, after its adaptation in ITRA, itra/loss/ProtoCPC.py, as no code of the author is public.
    Differs in the logarithms, which do not overflow, and a floor below the prior.
    """

    direction = "one_way"
    crosses_ranks = (
        "the sum of the teacher's assignments; with Sinkhorn also a number per prototype and round"
    )
    paper = "Lee 2022 (ICLR)"
    formula = (
        r"L = \frac{1}{N} \sum_i \left[ -p_i \cdot z_i + \log \sum_k \pi_k e^{z_{ik}} \right],"
        r" \quad z_i = \frac{a_i}{\tau_s},"
        r" \quad p_i = \mathrm{softmax}\left(\frac{b_i}{\tau_t}\right)"
    )

    prior: Tensor

    def __init__(
        self,
        *,
        num_prototypes: PositiveInt | None = 65536,
        student_temperature: Positive = 0.1,
        teacher_temperature: PositiveSchedulable = 0.04,
        prior_momentum: Probability = 0.9,
        assignment: Literal["softmax", "sinkhorn"] = "softmax",
        num_iterations: PositiveInt = 3,
    ) -> None:
        super().__init__(
            num_prototypes=num_prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )
        self.prior_momentum = prior_momentum
        self.assignment = assignment
        self.num_iterations = num_iterations

    def make_state(self, num_prototypes: int) -> None:
        self.register_buffer("prior", torch.ones(num_prototypes))

    def forward(
        self, student: Views, teacher: Views, *, progress: Progress = Progress()
    ) -> Float[Tensor, ""]:
        sides, pairs = self.sides(student, teacher)
        temperature = progress.value(self.teacher_temperature)
        if self.assignment == "softmax":
            targets = softmax_targets(sides, temperature, None)
        else:
            targets = sinkhorn_targets(sides, temperature, self.num_iterations)
        loss, assigned, _ = prototype_loss(
            sides,
            student_temperature=self.student_temperature,
            targets=targets,
            log_prior=self.prior.clamp_min(SMALLEST_PRIOR).log(),
            pairs=pairs,
        )
        self.stage(assigned * (len(self.prior) / sides.teacher[:, :, 0].numel()))
        return loss

    def commit(self, progress: Progress) -> None:
        self.average(self.prior, self.prior_momentum)


@torch.no_grad()
def sinkhorn_targets(sides: Sides, temperature: float, iterations: int) -> Targets:
    """Assignments of equal mass for each prototype and each row, as far as the iterations get; rows
    sum to 1 in the end.

    In logarithms: P = exp(b + f_k + g_i), f_k = -lse_i(b + g_i) over the rows of all ranks, then
    g_i = -lse_k(b + f_k). Marginals are constants, which the next normalization removes. Each half
    is one walk over the prototypes. The views of the teacher are balanced together.
    """
    rows = torch.zeros(
        sides.teacher.shape[:2], dtype=sides.teacher.dtype, device=sides.teacher.device
    )
    shift = torch.zeros(sides.num_prototypes, dtype=rows.dtype, device=rows.device)
    for _ in range(iterations):
        for some in tiles(sides):
            logits = (teacher_logits(sides, some) / temperature).sub_(rows[:, :, None])
            shift[some] = logits.flatten(0, 1).logsumexp(dim=0)
        shift = -gather_without_grad(shift).view(world_size(), -1).logsumexp(dim=0)
        rows = softmax_targets(sides, temperature, shift).rows
    return Targets(temperature, shift, rows)
