"""Similarity to a queue of anchors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, queue_loss
from vlkd_cli.distillers.distiller import Context, Distiller, require_equal_width
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.types import Positive, PositiveInt


class CompRess(Distiller):
    """Match the student's similarities to a queue of anchors with the teacher's similarities to its
    anchors.

    L = mean KL(softmax(t . M_t / tau) || softmax(s . M_s / tau)), both sides normalised here. The
    batch is compared with the queue as it was before; after the optimizer's step the rows of all
    ranks overwrite the oldest ones. With one queue the student is compared with the teacher's
    anchors, which needs equal widths. For the momentum variant give the student side two addresses,
    `student: [image,
    image_momentum]`: the student's queue then receives the second, the momentum tower's features.

    Args:
        queues: 2: each side has its own queue; 1: both use the teacher's.
        queue_size: anchors in each queue; need not be a multiple of the batch.
        temperature: divides the cosines of both sides.
        compat: "itra" takes 65536 anchors where queue_size is left at its default.

    Source: Koohpayegani et al., CompRess, NeurIPS 2020, arXiv:2010.14713, equation 2;
    UMBCvision/CompRess, nn/compress_loss.py. Differs in keeping the place of the next row in the
    checkpoint, and in taking in the rows of all ranks.
    """

    direction = "one_way"
    takes_lists = True
    most_outputs = (2, 1)
    needs = frozenset({"queue"})
    crosses_ranks = "features that enter the queues"
    paper = "Koohpayegani et al. 2020, arXiv:2010.14713"

    def __init__(
        self,
        *,
        queues: Literal[1, 2] = 2,
        queue_size: PositiveInt = 128000,
        temperature: Positive = 0.04,
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        self.queues = queues
        self.queue_size = 65536 if compat == "itra" and queue_size == 128000 else queue_size
        self.temperature = temperature
        self.student_queue: AnchorQueue | None = None
        self.teacher_queue: AnchorQueue | None = None

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        ours = student_width if isinstance(student_width, int) else student_width[0]
        assert isinstance(teacher_width, int)
        self.teacher_queue = AnchorQueue(self.queue_size, teacher_width, seed=0, unit_rows=False)
        if self.queues == 2:
            self.student_queue = AnchorQueue(self.queue_size, ours, seed=1, unit_rows=False)
        else:
            require_equal_width(self, ours, teacher_width)

    def forward(
        self,
        student: Float[Tensor, "B D"] | Sequence[Float[Tensor, "B D"]],
        teacher: Float[Tensor, "B E"],
        context: Context | None = None,
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

    def commit(self, step: int) -> None:
        for theirs, ours in self.take_staged():
            assert self.teacher_queue is not None
            self.teacher_queue.push(theirs)
            if self.student_queue is not None:
                self.student_queue.push(ours)
