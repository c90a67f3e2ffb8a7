"""Momentum contrast: against a queue of keys, or against the keys of the batch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, anchor_contrast
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.recipe.types import Positive, PositiveInt, Progress


class MoCo(Distiller):
    """Find each query's key among earlier keys, or among the keys of all ranks' batches.

    L = mean CE([q . k, q . queue] / temperature, 0), rows of length 1, no gradient to the keys. The
    queue is read before the keys of this step enter it. The teacher is usually a tower that follows
    the student: `student: image.project, teacher: image_key.project@key`.

    Args:
        queue_size: keys in the queue (v1, v2); null contrasts with the keys of the batch instead
            (v3), whose authors multiply the loss by 2 temperature for each direction.
        temperature: divides the cosines; 0.2 in v2 and v3, 0.07 in v1.

    Source: He et al., MoCo, CVPR 2020, arXiv:1911.05722, equation 1; Chen et al., MoCo v3,
    ICCV 2021, arXiv:2104.02057, algorithm 1. Differs in moving the queue once per optimizer step,
    and in not asking for batches that divide it.
    """

    direction = "one_way"
    crosses_ranks = "keys"
    paper = "He et al., CVPR 2020, arXiv:1911.05722"
    formula = (
        r"L = -\frac{1}{N} \sum_i \log \frac{e^{q_i \cdot k_i / \tau}}{e^{q_i \cdot k_i /"
        r" \tau} + \sum_{m \in M} e^{q_i \cdot m / \tau}}"
    )

    def __init__(
        self, *, queue_size: PositiveInt | None = 65536, temperature: Positive = 0.2
    ) -> None:
        super().__init__()
        self.queue_size, self.temperature = queue_size, temperature
        self.queue: AnchorQueue | None = None

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, int)
        if self.queue_size is not None:
            self.queue = AnchorQueue(self.queue_size, student, seed=0, unit_rows=True)

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        keys = unit(teacher.detach())
        if self.queue is None:
            anchors = gather_without_grad(keys)
        else:
            anchors = self.queue.rows.to(keys.dtype)
            self.stage(keys)
        return anchor_contrast(
            unit(student),
            keys,
            anchors,
            temperature=self.temperature,
            adds_positive=self.queue is not None,
        )

    def commit(self, progress: Progress) -> None:
        for (keys,) in self.take_staged():
            assert self.queue is not None
            self.queue.push(keys)
