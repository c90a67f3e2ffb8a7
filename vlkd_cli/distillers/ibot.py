"""Self-distillation of hidden patches over prototypes (iBOT)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.numerics.autograd import Context
from vlkd_cli.recipe.types import (
    Positive,
    PositiveSchedulable,
    Probability,
    Progress,
    Schedule,
)

_BLOCK_ENTRIES = {"cpu": 1 << 18, "cuda": 1 << 20}
"""Entries of the logits that are worked on at a time: near the cache, and few launches."""


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
        temperatures = self.student_temperature, progress.value(self.teacher_temperature)
        rows_of = torch.bincount(samples, minlength=len(indices))
        weights = 1 / (rows_of[samples] * len(indices)).to(student.dtype)
        self.stage(teacher.sum(dim=0), teacher.new_full((), len(teacher)))
        center = self.center.to(teacher.dtype)
        loss: Tensor = _Assignments.apply(student, teacher, center, weights, temperatures)
        return loss

    def commit(self, progress: Progress) -> None:
        staged = self.take_staged()
        if not staged:
            return
        total = sum_without_grad(torch.stack([rows for rows, _ in staged]).sum(dim=0))
        count = sum_without_grad(torch.stack([count for _, count in staged]).sum())
        # Without a hidden position the center stays.
        mean = torch.where(count > 0, (total / count).to(self.center.dtype), self.center)
        self.center.lerp_(mean, 1 - self.center_momentum)


class _Assignments(torch.autograd.Function):
    """Sum over rows of weight * CE(softmax((t - center) / tau_t), s / tau_s).

    Value and slope come from one walk over blocks of rows, so that beyond the logits of both sides
    the slope alone is held.
    """

    @staticmethod
    def forward(
        ctx: Context,
        student: Tensor,
        teacher: Tensor,
        center: Tensor,
        weights: Tensor,
        temperatures: tuple[float, float],
    ) -> Tensor:
        per_row = torch.empty_like(weights)
        slope = torch.empty_like(student) if ctx.needs_input_grad[0] else None
        entries = _BLOCK_ENTRIES.get(student.device.type, _BLOCK_ENTRIES["cpu"])
        step = max(entries // student.shape[1], 1)
        for first in range(0, len(student), step):
            part = slice(first, first + step)
            logits = student[part] / temperatures[0]
            targets = (teacher[part] - center).div_(temperatures[1]).softmax(dim=1)
            lse = logits.logsumexp(dim=1)
            per_row[part] = lse - torch.linalg.vecdot(targets, logits)
            if slope is not None:
                predicted = logits.sub_(lse[:, None]).exp_()
                factors = weights[part, None] / temperatures[0]
                torch.mul(predicted.sub_(targets), factors, out=slope[part])
        ctx.save_for_backward(slope)
        return (per_row * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        # In place, as a second such matrix would be the largest of a step; autograd refuses to read
        # it again.
        return slope.mul_(grads[0]), *[None] * 4
