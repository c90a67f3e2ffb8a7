"""Self-distillation of hidden patches over prototypes (iBOT)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.recipe.types import (
    Positive,
    PositiveSchedulable,
    Probability,
    Progress,
    Schedule,
)


class IBOT(Distiller):
    """Match the assignment of hidden positions to prototypes with the teacher's, which sees them.

    Rows are the hidden positions of all samples, logits of heads `prototypes` that read the tokens
    with `at: hidden`. L = mean over samples of the mean over their hidden positions of
    CE(softmax((t - center) / teacher_temperature), s / student_temperature); a sample without
    hidden positions counts 0. After each step the center follows the mean of the teacher's rows of
    all ranks.

    Args:
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.
        center_momentum: fraction of the old center that stays.

    Source: Zhou et al., iBOT, ICLR 2022, arXiv:2111.07832, equation 2; bytedance/ibot,
    main_ibot.py:iBOTLoss. Differs in moving the center once per optimizer step, by the mean over
    all ranks' rows.
    """

    direction = "one_way"
    crosses_ranks = "the sum and the number of the teacher's rows"
    paper = "Zhou et al., ICLR 2022, arXiv:2111.07832"
    formula = (
        r"L = -\frac{1}{N} \sum_i \frac{1}{|H_i|} \sum_{p \in H_i}"
        r" \mathrm{softmax}\left(\frac{t_{ip} - c}{\tau_t}\right)"
        r" \cdot \log \mathrm{softmax}\left(\frac{s_{ip}}{\tau_s}\right)"
    )

    center: Tensor

    def __init__(
        self,
        *,
        student_temperature: Positive = 0.1,
        teacher_temperature: PositiveSchedulable = Schedule(linear=(0.04, 0.07), epochs=30),
        center_momentum: Probability = 0.9,
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.center_momentum = center_momentum

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, int)
        self.register_buffer("center", torch.zeros(student))

    def forward(
        self,
        student: Float[Tensor, "M D"],
        teacher: Float[Tensor, "M D"],
        *,
        samples: Int[Tensor, " M"],
        indices: Int[Tensor, " B"],
        progress: Progress = Progress(),
    ) -> Float[Tensor, ""]:
        teacher = teacher.detach()
        temperature = progress.value(self.teacher_temperature)
        targets = ((teacher - self.center.to(teacher.dtype)) / temperature).softmax(dim=1)
        logits = student / self.student_temperature
        per_row = logits.logsumexp(dim=1) - (targets * logits).sum(dim=1)
        rows_of = torch.bincount(samples, minlength=len(indices))
        self.stage(teacher.sum(dim=0), teacher.new_full((), len(teacher)))
        return (per_row / rows_of[samples]).sum() / len(indices)

    def commit(self, progress: Progress) -> None:
        staged = self.take_staged()
        if not staged:
            return
        total = sum_without_grad(torch.stack([rows for rows, _ in staged]).sum(dim=0))
        count = sum_without_grad(torch.stack([count for _, count in staged]).sum())
        # Without a hidden position the center stays.
        mean = torch.where(count > 0, (total / count).to(self.center.dtype), self.center)
        self.center.lerp_(mean, 1 - self.center_momentum)
