"""Distillation over prototypes with centred, sharpened teacher assignments."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Context
from vlkd_cli.distillers.prototype_loss import prototype_loss, softmax_targets
from vlkd_cli.distillers.prototypes import PrototypeDistiller, Views
from vlkd_cli.distributed.collectives import mean_without_grad
from vlkd_cli.recipe.types import Positive, PositiveInt, PositiveSchedulable, Probability


class DINO(PrototypeDistiller):
    """Match the student's assignment to prototypes with the teacher's, which is sharpened by its
    temperature and kept spread by centring.

    L = mean over pairs of views of CE(softmax((b - centre) / teacher_temp), a / student_temp). Each
    side is one tensor, or a list of views of which the teacher's are the first of the student's
    (`student: [image, image@second, image@crop]`, `teacher: [momentum, momentum@second]`); pairs of
    the same view are left out. After each step the centre follows the mean of the teacher's raw
    logits over all views and ranks.

    By default the inputs are bottleneck features, and the prototype layer, one for both sides,
    belongs to this objective: towers carry
    head `mlp` and the two widths are equal. With `prototypes: null` the inputs are logits of towers
    with head `prototypes`, each with its own layer, as DINO's momentum teacher has.

    Args:
        prototypes: size of the layer that both sides share; null where the towers have their own.
        student_temp: divides the student's logits.
        teacher_temp: divides the teacher's; the authors recommend `{linear: [0.04, 0.07], epochs:
            30}`.
        center_momentum: share of the old centre that stays.

    Source: Caron et al., DINO, ICCV 2021, arXiv:2104.14294, equation 2; facebookresearch/dino,
    main_dino.py:DINOLoss. Differs in moving the centre once per optimizer step.
    """

    direction = "one_way"
    takes_lists = True
    needs = frozenset({"equal_width", "prototypes"})
    crosses_ranks = "the sum of the teacher's logits"
    paper = "Caron et al. 2021, arXiv:2104.14294"

    center: Tensor

    def __init__(
        self,
        *,
        prototypes: PositiveInt | None = 65536,
        student_temp: Positive = 0.1,
        teacher_temp: PositiveSchedulable = 0.04,
        center_momentum: Probability = 0.9,
    ) -> None:
        super().__init__()
        self.num_prototypes = prototypes
        self.prototypes = None
        self.student_temp = student_temp
        self.teacher_temp = teacher_temp
        self.center_momentum = center_momentum

    def make_state(self, num_prototypes: int) -> None:
        self.register_buffer("center", torch.zeros(num_prototypes))

    def forward(
        self, student: Views, teacher: Views, context: Context | None = None
    ) -> Float[Tensor, ""]:
        sides, pairs = self.sides(student, teacher)
        temperature = (context or Context()).value(self.teacher_temp)
        targets = softmax_targets(sides, temperature, self.center / -temperature)
        loss, _, logit_sums = prototype_loss(
            sides,
            student_temperature=self.student_temp,
            targets=targets,
            log_prior=None,
            pairs=pairs,
        )
        self.stage(logit_sums / sides.teacher[:, :, 0].numel())
        return loss

    def commit(self, step: int) -> None:
        staged = self.take_staged()
        if staged:
            batch_center = mean_without_grad(torch.stack([mean for (mean,) in staged]).mean(dim=0))
            self.center.mul_(self.center_momentum).add_(
                batch_center, alpha=1 - self.center_momentum
            )
