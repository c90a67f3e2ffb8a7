"""Similarity to the teacher's queue, the own teacher included."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, queue_loss
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.types import Positive, PositiveInt, Progress


class SEED(Distiller):
    """Match the student's similarities to a queue of teacher features, and to the own teacher's
    feature, with the teacher's.

    L = mean CE(softmax([1, t . M] / tau_t), [s . t, s . M] / tau_s), both sides L2-normalized here.
    After the optimizer's step the teacher rows of all ranks overwrite the oldest ones; the queue
    need not be a multiple of the batch. At the authors' teacher temperature of 1e-4 the target is
    the own teacher unless an anchor's cosine exceeds 0.999, so this is InfoNCE with a queue; 0.01
    spreads it.

    Args:
        queue_size: anchors in the queue.
        student_temperature: divides the student's cosines.
        teacher_temperature: divides the teacher's cosines.
        compat: "itra" takes a student temperature of 0.07 where it is left at its default.

    Source: Fang et al., SEED, ICLR 2021, arXiv:2101.04731, equation 4; jacobswan1/SEED,
    seed/builder.py and tools/utils.py, with the temperatures of its command line. Differs in not
    asking for batches that divide the queue.
    """

    direction = "one_way"
    crosses_ranks = "teacher features that enter the queue"
    paper = "Fang et al. 2021, arXiv:2101.04731"
    formula = (
        r"L = -\frac{1}{N} \sum_i \mathrm{softmax}\left(\frac{[1, t_i"
        r" M^{\top}]}{\tau_t}\right) \cdot \log \mathrm{softmax}\left(\frac{[s_i"
        r" t_i^{\top}, s_i M^{\top}]}{\tau_s}\right)"
    )

    def __init__(
        self,
        *,
        queue_size: PositiveInt = 65536,
        student_temperature: Positive = 0.2,
        teacher_temperature: Positive = 1e-4,
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        self.queue_size = queue_size
        self.student_temperature = (
            0.07 if compat == "itra" and student_temperature == 0.2 else student_temperature
        )
        self.teacher_temperature = teacher_temperature
        self.queue: AnchorQueue | None = None

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(teacher, int)
        self.queue = AnchorQueue(self.queue_size, teacher, seed=0, unit_rows=True)

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        theirs = unit(teacher.detach())
        assert self.queue is not None
        loss = queue_loss(
            unit(student),
            theirs,
            self.queue.rows,
            self.queue.rows,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            own_teacher=True,
        )
        self.stage(theirs)
        return loss

    def commit(self, progress: Progress) -> None:
        for (theirs,) in self.take_staged():
            assert self.queue is not None
            self.queue.push(theirs)
