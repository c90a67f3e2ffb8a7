"""Triplet margin loss with miners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.labeled_rows import LabeledRows, labeled_rows, mean_over_counted

Miner = Literal["none", "all", "semihard", "hard", "easy", "batch_hard"]
_BLOCK_ENTRIES = 1 << 22


class Triplet(Distiller):
    """Pull rows of one class together until every row of another class is farther by a margin.

    Mean of relu(D(anchor, positive) - D(anchor, negative) + margin) over the mined triplets whose
    loss is above 0, D between rows of length 1. Several outputs of a sample are several rows of its
    class; a sample without a label is a class of its own.

    Args:
        margin: how much farther a negative has to be than a positive.
        soft: softplus instead of relu, as a mean over all mined triplets.
        distance: "l2", the Euclidean distance of unit rows, or "cosine", 1 - cosine.
        miner: which triplets count, by gap = D(anchor, negative) - D(anchor, positive): "none",
            every triplet; "all", gap up to `miner_margin`; "semihard", 0 < gap <= miner_margin;
            "hard", gap <= min(0, miner_margin); "easy", gap > miner_margin; "batch_hard", for each
            anchor its farthest positive and its nearest negative.
        miner_margin: of the miners "all", "semihard", "hard" and "easy"; null takes `margin`.

    Source: Schroff et al., FaceNet, CVPR 2015, arXiv:1503.03832, equation 3, and Hermans et al.,
    arXiv:1703.07737, equation 5 (batch hard), with the miners of pytorch-metric-learning 2.9.
    """

    direction = "symmetric"
    crosses_ranks = "rows with gradient, labels, the number of triplets"
    minimum_batch = 3
    paper = "Schroff et al., CVPR 2015, arXiv:1503.03832"
    formula = (
        r"L = \frac{1}{|T|} \sum_{(a, p, n) \in T} (D_{ap} - D_{an} + m),"
        r" \quad T = \{(a, p, n) \text{ mined}: D_{ap} - D_{an} + m > 0\}"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "miner": {"none": ("miner_margin",), "batch_hard": ("miner_margin",)},
    }

    def __init__(
        self,
        *,
        margin: float = 0.2,
        soft: bool = False,
        distance: Literal["l2", "cosine"] = "l2",
        miner: Miner = "none",
        miner_margin: float | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.soft, self.distance, self.miner = margin, soft, distance, miner
        self.miner_margin = margin if miner_margin is None else miner_margin

    def forward(
        self,
        student: Sequence[Float[Tensor, "B D"]],
        *,
        labels: Int[Tensor, " B"] | None = None,
        indices: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        rows = labeled_rows(student, labels, indices, "triplet")
        if self.miner == "batch_hard":
            return self._batch_hard(rows)
        distances = self._distances(rows)
        value, count, slopes = self._mined(distances.detach(), rows)
        # The gradient of the sum with respect to each distance is known from the count of triplets
        # that contain it, so autograd never sees a triplet: memory stays at B x N.
        linear = (slopes * distances).sum()
        return mean_over_counted(value + linear - linear.detach(), count)

    def _batch_hard(self, rows: LabeledRows) -> Float[Tensor, ""]:
        """A triplet for each anchor, so that few distances need a gradient."""
        with torch.no_grad():
            order = self._order(rows)
            farthest = order.masked_fill(~rows.positive, -torch.inf).argmax(1)
            nearest = order.masked_fill_(~rows.negative, torch.inf).argmin(1)
        pairs = [(rows.own, rows.every[chosen]) for chosen in (farthest, nearest)]
        if self.distance == "cosine":
            near, far = (1 - (one * other).sum(1) for one, other in pairs)
        else:
            near, far = ((one - other).norm(dim=1) for one, other in pairs)
        excess = near - far + self.margin
        counted = rows.positive.any(1) & rows.negative.any(1)
        if not self.soft:
            counted &= excess > 0
        loss = softplus(excess) if self.soft else excess
        return mean_over_counted((loss * counted).sum(), counted.sum())

    def _order(self, rows: LabeledRows) -> Float[Tensor, "B N"]:
        """Numbers that order the rows around each anchor as their distances do.

        |a - b|^2 less |a|^2, which is the same for a whole line, or the negative cosine. In double
        precision a matrix product has the digits that differences have in single precision.
        """
        own, every = rows.own.double(), rows.every.double()
        lengths = every.square().sum(1)
        return torch.addmm(lengths * (self.distance == "l2"), own, every.T, alpha=-2)

    def _distances(self, rows: LabeledRows) -> Float[Tensor, "B N"]:
        if self.distance == "cosine":
            return 1 - rows.own @ rows.every.T
        # Differences, not 2 - 2 cos: near 0 that product has half of the digits only.
        return torch.cdist(rows.own, rows.every, compute_mode="donot_use_mm_for_euclid_dist")

    @torch.no_grad()
    def _mined(
        self, distances: Float[Tensor, "B N"], rows: LabeledRows
    ) -> tuple[Tensor, Tensor, Float[Tensor, "B N"]]:
        """Sum of the losses, number of triplets in the mean, and the sum's slope by each distance.

        Anchors are taken in blocks of at most 4 million triplets.
        """
        value = distances.new_zeros(())
        count = torch.zeros((), dtype=torch.int64, device=distances.device)
        slopes = torch.zeros_like(distances)
        most = int(rows.positive.sum(1).max()) if len(distances) else 0
        if most == 0:
            return value, count, slopes
        step = max(_BLOCK_ENTRIES // (most * distances.shape[1]), 1)
        for first in range(0, len(distances), step):
            part = slice(first, first + step)
            is_positive, columns = rows.positive[part].to(torch.uint8).topk(most, dim=1)
            near = distances[part].gather(1, columns)
            gap = distances[part][:, None, :] - near[:, :, None]
            chosen = self._chosen(gap, is_positive.bool(), rows.negative[part], near)
            excess = self.margin - gap
            if self.soft:
                loss, slope = softplus(excess), excess.sigmoid()
            else:
                chosen &= excess > 0
                loss, slope = excess, torch.ones_like(excess)
            slope = slope * chosen
            value += (loss * chosen).sum()
            count += chosen.sum()
            slopes[part] -= slope.sum(1)
            slopes[part] += torch.zeros_like(slopes[part]).scatter_add_(1, columns, slope.sum(2))
        return value, count, slopes

    def _chosen(
        self,
        gap: Float[Tensor, "b P N"],
        is_positive: Bool[Tensor, "b P"],
        is_negative: Bool[Tensor, "b N"],
        near: Float[Tensor, "b P"],
    ) -> Bool[Tensor, "b P N"]:
        """Which triplets the miner takes."""
        valid = is_positive[:, :, None] & is_negative[:, None, :]
        if self.miner == "none":
            return valid
        limit = self.miner_margin
        fits = {
            "all": gap <= limit,
            "semihard": (gap > 0) & (gap <= limit),
            "hard": gap <= min(0.0, limit),
            "easy": gap > limit,
        }
        return valid & fits[self.miner]
