"""Similarity to a queue of anchors."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, queue_loss
from vlkd_cli.distillers.distiller import Distiller, Widths, require_equal_width, widths_of
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.types import Positive, PositiveInt, Progress


class CompRess(Distiller):
    """Match the student's similarities to a queue of anchors with the teacher's similarities to its
    anchors.

    L = mean KL(softmax(t . M_t / tau) || softmax(s . M_s / tau)), both sides L2-normalized here.
    The batch is compared with the queue as it was before; after the optimizer's step the rows of
    all ranks overwrite the oldest ones. With one queue the student is compared with the teacher's
    anchors, which needs equal widths. For the momentum variant give the student side two addresses,
    `student: [image, image_momentum]`: the student's queue then receives the second, the features
    of the tower that follows it.

    Args:
        num_queues: 2: each side has its own queue; 1: both use the teacher's.
        queue_size: anchors in each queue; need not be a multiple of the batch.
        temperature: divides the cosines of both sides.
        compat: "itra" takes 65536 anchors where queue_size is left at its default.

    Source: Koohpayegani et al., CompRess, NeurIPS 2020, arXiv:2010.14713, equation 2;
    UMBCvision/CompRess, nn/compress_loss.py. Differs in storing the position of the next row in the
    checkpoint, and in taking in the rows of all ranks.
    """

    direction = "one_way"
    crosses_ranks = "features that enter the queues"
    paper = "Koohpayegani et al. 2020, arXiv:2010.14713"
    formula = (
        r"L = \frac{1}{N} \sum_i \mathrm{KL}\left( \mathrm{softmax}\left(\frac{t_i"
        r" M_t^{\top}}{\tau}\right) \,\middle\|\, \mathrm{softmax}\left(\frac{s_i"
        r" M_s^{\top}}{\tau}\right) \right)"
    )

    def __init__(
        self,
        *,
        num_queues: Literal[1, 2] = 2,
        queue_size: PositiveInt = 128000,
        temperature: Positive = 0.04,
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        self.num_queues = num_queues
        self.queue_size = 65536 if compat == "itra" and queue_size == 128000 else queue_size
        self.temperature = temperature
        self.student_queue: AnchorQueue | None = None
        self.teacher_queue: AnchorQueue | None = None

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(teacher, int)
        width = widths_of(student)[0]
        if self.num_queues == 1:
            require_equal_width(self, width, teacher)
        self.teacher_queue = AnchorQueue(self.queue_size, teacher, seed=0, unit_rows=False)
        if self.num_queues == 2:
            self.student_queue = AnchorQueue(self.queue_size, width, seed=1, unit_rows=False)

    def forward(
        self,
        student: Float[Tensor, "B D"] | tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]],
        teacher: Float[Tensor, "B E"],
    ) -> Float[Tensor, ""]:
        query, key = (student, student) if isinstance(student, Tensor) else student
        ours, theirs = unit(query), unit(teacher.detach())
        assert self.teacher_queue is not None
        anchors = self.student_queue or self.teacher_queue
        loss = queue_loss(
            ours,
            theirs,
            anchors.rows,
            self.teacher_queue.rows,
            student_temperature=self.temperature,
            teacher_temperature=self.temperature,
            subtracts_entropy=True,
        )
        self.stage(theirs, ours if key is query else unit(key.detach()))
        return loss

    def commit(self, progress: Progress) -> None:
        for theirs, ours in self.take_staged():
            assert self.teacher_queue is not None
            self.teacher_queue.push(theirs)
            if self.student_queue is not None:
                self.student_queue.push(ours)
