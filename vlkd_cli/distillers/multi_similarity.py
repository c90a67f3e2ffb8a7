"""Multi-similarity loss with its pair miner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.labeled_rows import labeled_rows
from vlkd_cli.recipe.types import NonNegative, Positive


class MultiSimilarity(Distiller):
    """Weigh pairs by their own similarity and by those of the other pairs of the row.

    For each row log(1 + sum exp(-alpha (S - base))) / alpha over its positives plus
    log(1 + sum exp(beta (S - base))) / beta over its negatives, S the cosine; a mean over all rows,
    those without pairs too.

    Args:
        alpha: sharpness of the positive term.
        beta: sharpness of the negative term.
        base: cosine that separates positives from negatives.
        epsilon: margin of the miner "pairs".
        miner: "pairs" selects positives less similar than the most similar negative plus epsilon,
            and negatives more similar than the least similar positive minus epsilon; "none" uses
            every pair.

    Source: Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019,
    arXiv:1904.06627, equations 10 to 15.
    """

    direction = "symmetric"
    crosses_ranks = "rows with gradient, labels"
    minimum_batch = 2
    paper = "Wang et al., CVPR 2019, arXiv:1904.06627"
    formula = (
        r"L = \frac{1}{N} \sum_i \left["
        r" \frac{1}{\alpha} \log\left(1 + \sum_{p \in P_i} e^{-\alpha (S_{ip} - \lambda)}\right)"
        r" + \frac{1}{\beta} \log\left(1 + \sum_{n \in N_i} e^{\beta (S_{in} - \lambda)}\right)"
        r" \right], \quad S_{ij} = \cos(x_i, x_j)"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "miner": {"none": ("epsilon",)},
    }

    def __init__(
        self,
        *,
        alpha: Positive = 2.0,
        beta: Positive = 50.0,
        base: float = 0.5,
        epsilon: NonNegative = 0.1,
        miner: Literal["pairs", "none"] = "pairs",
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.base = alpha, beta, base
        self.epsilon, self.miner = epsilon, miner

    def forward(
        self,
        student: Sequence[Float[Tensor, "B D"]],
        *,
        labels: Int[Tensor, " B"] | None = None,
        indices: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        rows = labeled_rows(student, labels, indices, "multi_similarity")
        cosines = rows.own @ rows.every.T
        positive, negative = rows.positive, rows.negative
        if self.miner == "pairs":
            positive, negative = self._hard_pairs(cosines.detach(), positive, negative)
        attract = _log1p_sum_exp(-self.alpha * (cosines - self.base), positive) / self.alpha
        repel = _log1p_sum_exp(self.beta * (cosines - self.base), negative) / self.beta
        return (attract + repel).mean()

    def _hard_pairs(
        self,
        cosines: Float[Tensor, "B N"],
        positive: Bool[Tensor, "B N"],
        negative: Bool[Tensor, "B N"],
    ) -> tuple[Bool[Tensor, "B N"], Bool[Tensor, "B N"]]:
        # For a row without negatives no positive is selected, and the reverse: both bounds are
        # infinite.
        nearest_negative = cosines.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        farthest_positive = cosines.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        return (
            positive & (cosines - self.epsilon < nearest_negative),
            negative & (cosines + self.epsilon > farthest_positive),
        )


def _log1p_sum_exp(
    exponents: Float[Tensor, "B N"], counted: Bool[Tensor, "B N"]
) -> Float[Tensor, " B"]:
    """log(1 + sum of exp over the counted entries) of each row."""
    masked = exponents.masked_fill(~counted, -torch.inf)
    return torch.cat([torch.zeros_like(masked[:, :1]), masked], dim=1).logsumexp(1)
