"""Contrast of positions between two views (DenseCL)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, anchor_contrast
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.types import Positive, PositiveInt, Progress


class DenseContrast(Distiller):
    """Contrast each position of a view with its match in the other view, among earlier keys.

    Each side is two outputs over positions, the projection that is contrasted and the features that
    find the match: `student: [image.dense, image.tokens]`. The match of a student position is the
    teacher position whose feature has the highest cosine. L = mean over positions of CE([q .
    k_match, q . queue] / temperature, 0). What enters the queue is the mean over positions of a
    sample's keys, at length 1.

    Args:
        queue_size: keys in the queue.
        temperature: divides the cosines.

    Source: Wang et al., Dense Contrastive Learning for Self-Supervised Visual Pre-Training,
    CVPR 2021, arXiv:2011.09157, equations 2 and 3. The weights of this term and of `moco` are the
    recipe's.
    """

    direction = "one_way"
    crosses_ranks = "keys"
    paper = "Wang et al., CVPR 2021, arXiv:2011.09157"
    formula = (
        r"L = -\frac{1}{NT} \sum_{i,p} \log \frac{e^{q_{ip} \cdot k_{i c(p)} / \tau}}"
        r"{e^{q_{ip} \cdot k_{i c(p)} / \tau} + \sum_{m \in M} e^{q_{ip} \cdot m / \tau}},"
        r" \quad c(p) = \mathrm{argmax}_r \cos(f_{ip}, g_{ir})"
    )

    def __init__(self, *, queue_size: PositiveInt = 65536, temperature: Positive = 0.2) -> None:
        super().__init__()
        self.queue_size, self.temperature = queue_size, temperature
        self.queue: AnchorQueue | None = None

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, tuple)
        self.queue = AnchorQueue(self.queue_size, student[0], seed=0, unit_rows=True)

    def forward(
        self,
        student: tuple[Float[Tensor, "B T D"], Float[Tensor, "B T C"]],
        teacher: tuple[Float[Tensor, "B T D"], Float[Tensor, "B T C"]],
    ) -> Float[Tensor, ""]:
        (queries, ours), (raw_keys, theirs) = student, teacher
        raw_keys = raw_keys.detach()
        with torch.no_grad():
            match = (unit(ours) @ unit(theirs).mT).argmax(dim=2)
        keys = unit(raw_keys)
        matched = keys.gather(1, match[:, :, None].expand(-1, -1, keys.shape[2]))
        assert self.queue is not None
        self.stage(unit(raw_keys.mean(dim=1)))
        return anchor_contrast(
            unit(queries).flatten(0, 1),
            matched.flatten(0, 1),
            self.queue.rows.to(keys.dtype),
            temperature=self.temperature,
            adds_positive=True,
        )

    def commit(self, progress: Progress) -> None:
        for (keys,) in self.take_staged():
            assert self.queue is not None
            self.queue.push(keys)
