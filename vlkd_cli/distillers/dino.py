"""Distillation over prototypes with centered, sharpened teacher assignments."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.prototype_loss import prototype_loss, softmax_targets
from vlkd_cli.distillers.prototypes import PrototypeDistiller, Views
from vlkd_cli.recipe.types import (
    Positive,
    PositiveInt,
    PositiveSchedulable,
    Probability,
    Progress,
)


class DINO(PrototypeDistiller):
    """Match the student's assignment to prototypes with the teacher's, which is sharpened by its
    temperature and prevented from collapsing by centering.

    L = mean over pairs of views of CE(softmax((b - center) / tau_t), a / tau_s). Each side is one
    output, or a list of views of which the teacher's are the first of the student's (`student:
    [image, image@second, image@crop]`, `teacher: [momentum, momentum@second]`); pairs of the same
    view are left out. After each step the center follows the mean of the teacher's raw logits over
    all views and ranks.

    By default the inputs are bottleneck features, and the prototype layer, one for both sides,
    belongs to this objective: towers carry head `mlp` and the two widths are equal. With
    `num_prototypes: null` the inputs are logits of towers with head `prototypes`, each with its own
    layer, as DINO's momentum teacher has.

    Args:
        teacher_temperature: tau_t, divides the teacher's logits; the authors recommend `{linear:
            [0.04, 0.07], epochs: 30}`.
        center_momentum: fraction of the old center that remains.

    Source: Caron et al., DINO, ICCV 2021, arXiv:2104.14294, equation 2; facebookresearch/dino,
    main_dino.py:DINOLoss. Differs in moving the center once per optimizer step.
    """

    direction = "one_way"
    crosses_ranks = "the sum of the teacher's logits"
    paper = "Caron et al. 2021, arXiv:2104.14294"
    formula = (
        r"L = -\frac{1}{|P|} \sum_{(u, v) \in P}"
        r" \mathrm{softmax}\left(\frac{b_u - c}{\tau_t}\right)"
        r" \cdot \log \mathrm{softmax}\left(\frac{a_v}{\tau_s}\right),"
        r" \quad P = \{(u, v): u \neq v\}"
    )

    center: Tensor

    def __init__(
        self,
        *,
        num_prototypes: PositiveInt | None = 65536,
        student_temperature: Positive = 0.1,
        teacher_temperature: PositiveSchedulable = 0.04,
        center_momentum: Probability = 0.9,
    ) -> None:
        super().__init__(
            num_prototypes=num_prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
        )
        self.center_momentum = center_momentum

    def make_state(self, num_prototypes: int) -> None:
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(
        self, student: Views, teacher: Views, *, progress: Progress = Progress()
    ) -> Float[Tensor, ""]:
        sides, pairs = self.sides(student, teacher)
        temperature = progress.value(self.teacher_temperature)
        targets = softmax_targets(sides, temperature, self.center / -temperature)
        loss, _, logit_sums = prototype_loss(
            sides,
            student_temperature=self.student_temperature,
            targets=targets,
            log_prior=None,
            pairs=pairs,
        )
        self.stage(logit_sums / sides.teacher[:, :, 0].numel())
        return loss

    def commit(self, progress: Progress) -> None:
        self.average(self.center, self.center_momentum)
