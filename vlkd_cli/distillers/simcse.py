"""Contrast of two dropout passes of one tower."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import own_columns, unit
from vlkd_cli.distributed.collectives import gather
from vlkd_cli.recipe.types import Positive

SMALLEST_NORM = 1e-8
"""The authors' bound on each norm of the cosine."""


class SimCSE(Distiller):
    """Find each sentence's second encoding among all second encodings of the batch.

    The two sides are two passes of the same tower, which dropout (or the data: premise and
    entailment) makes differ; both learn. In a recipe: `student: text, teacher: text@second`, with
    `second` among `data.views`. A second output of the teacher holds hard negatives, one for each
    row: `teacher: [text@second, text@negative]`. L = mean_i [lse(S_i) - S_ii] with S = cos(z1, z2)
    / temperature, widened by cos(z1, z3) / temperature.

    Args:
        temperature: divides the cosines.
        hard_negative_weight: a logit added to each row's own hard negative.
        compat: "itra" contrasts in both directions, as CLIP does.

    Source: Gao et al., SimCSE, EMNLP 2021, arXiv:2104.08821, equations 1 and 5;
    princeton-nlp/SimCSE, simcse/models.py:cl_forward. Differs in the gradient over ranks, which is
    exact here and 1/W there.
    """

    direction = "symmetric"
    minimum_batch = 2
    crosses_ranks = "second views and hard negatives, with gradient"
    paper = "Gao et al. 2021, arXiv:2104.08821"
    formula = (
        r"L = \frac{1}{N} \sum_i \left[ \log \sum_j e^{S_{ij}} - S_{ii} \right], \quad"
        r" S_{ij} = \frac{\cos(z_i, z'_j)}{\tau}"
    )

    def __init__(
        self,
        *,
        temperature: Positive = 0.05,
        hard_negative_weight: float = 0.0,
        compat: Literal["itra"] | None = None,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.hard_negative_weight = hard_negative_weight
        self.both_directions = compat == "itra"

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"] | tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]],
    ) -> Float[Tensor, ""]:
        first = unit(student, SMALLEST_NORM)
        second, *negatives = (
            unit(view, SMALLEST_NORM)
            for view in ((teacher,) if isinstance(teacher, Tensor) else teacher)
        )
        loss = self._one_direction(first, second, negatives)
        if self.both_directions:
            loss = (loss + self._one_direction(second, first, negatives)) / 2
        return loss

    def _one_direction(self, queries: Tensor, keys: Tensor, negatives: list[Tensor]) -> Tensor:
        logits = queries @ gather(keys).T / self.temperature
        matches = (queries * keys).sum(dim=1) / self.temperature
        for negative in negatives:
            against = queries @ gather(negative).T / self.temperature
            if self.hard_negative_weight:
                rows = torch.arange(len(queries), device=queries.device)
                own = torch.zeros_like(against)
                own[rows, own_columns(len(queries), queries.device)] = self.hard_negative_weight
                against = against + own
            logits = torch.cat([logits, against], dim=1)
        return (logits.logsumexp(dim=1) - matches).mean()
