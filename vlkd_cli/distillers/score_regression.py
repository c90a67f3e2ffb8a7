"""Regression or ranking of scored pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather, gather_without_grad
from vlkd_cli.recipe.types import Interval, Positive


class ScoreRegression(Distiller):
    """Make the cosine of two outputs follow the score of the pair.

    "mse": mean of (cosine - score)^2, the score mapped from `range` to [0, 1]. "ranking":
    log(1 + sum exp(scale (cos_j - cos_i))) over all pairs of pairs of the global batch with
    score_i > score_j, so only the order of the scores counts.

    Args:
        loss: "mse" or "ranking".
        range: lowest and highest score; of "mse" only.
        scale: of "ranking" only.

    Source: Reimers and Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084, section 3
    (regression); Su, CoSENT, 2022, as in sentence-transformers' CoSENTLoss (ranking).
    """

    direction = "symmetric"
    crosses_ranks = "ranking: a cosine with gradient and a score of each pair"
    paper = "Reimers and Gurevych, EMNLP 2019, arXiv:1908.10084"
    formula = (
        r"L_{\mathrm{mse}} = \frac{1}{N} \sum_i (c_i - r_i)^2,"
        r" \quad L_{\mathrm{ranking}} ="
        r" \log\left(1 + \sum_{r_i > r_j} e^{\alpha (c_j - c_i)}\right),"
        r" \quad c_i = \cos(x_i, y_i)"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "loss": {"ranking": ("range",), "mse": ("scale",)},
    }

    def __init__(
        self,
        *,
        loss: Literal["mse", "ranking"] = "mse",
        range: Interval | None = None,
        scale: Positive | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.scale = loss, 20.0 if scale is None else scale
        self.low, self.high = range or (0.0, 1.0)

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        targets: Float[Tensor, "B T"],
    ) -> Float[Tensor, ""]:
        cosine = (unit(student) * unit(teacher)).sum(1)
        score = targets[:, 0].to(cosine)
        if self.loss == "mse":
            return (cosine - (score - self.low) / (self.high - self.low)).square().mean()
        every_cosine, every_score = gather(cosine), gather_without_grad(score)
        above = every_score[:, None] > every_score[None, :]
        exponents = self.scale * (every_cosine[None, :] - every_cosine[:, None])
        exponents = exponents.masked_fill(~above, -torch.inf).flatten()
        return torch.cat([exponents.new_zeros(1), exponents]).logsumexp(0)
