"""Supervised contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.labeled_rows import labeled_rows, mean_over_counted
from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.recipe.types import Positive


class SupCon(Distiller):
    """Softmax contrast of every row with the rows of its class against all others.

    For each row the mean over its positives of -log softmax of the cosine over the temperature,
    the row itself left out of the softmax; a mean over the rows that have a positive, and 0 where
    the batch has no two classes. Several outputs of a sample are several rows of its class; a
    sample without a label is a class of its own.

    Args:
        temperature: divides the cosines.

    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362,
    equation 2 (the mean outside of the logarithm).
    """

    direction = "symmetric"
    crosses_ranks = "rows with gradient, labels, the number of rows with a positive"
    minimum_batch = 2
    paper = "Khosla et al., NeurIPS 2020, arXiv:2004.11362"
    formula = (
        r"L = -\frac{1}{|A|} \sum_{i \in A} \frac{1}{|P_i|} \sum_{p \in P_i}"
        r" \log \frac{e^{\cos(x_i, x_p) / \tau}}{\sum_{j \neq i} e^{\cos(x_i, x_j) / \tau}},"
        r" \quad A = \{i: P_i \neq \emptyset\}"
    )

    def __init__(self, *, temperature: Positive = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self,
        student: Sequence[Float[Tensor, "B D"]],
        *,
        labels: Int[Tensor, " B"] | None = None,
        indices: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, ""]:
        rows = labeled_rows(student, labels, indices, "supcon")
        if len(rows.every) == 1:  # nothing to contrast with, not even in the softmax
            return (rows.own * 0).sum()
        logits = rows.own @ rows.every.T / self.temperature
        own = torch.arange(len(rows.own), device=logits.device)
        others = logits.clone()
        others[own, own + rank() * len(own)] = -torch.inf
        positives = rows.positive.sum(1)
        attracted = (logits * rows.positive).sum(1) / positives.clamp_min(1)
        per_row = (others.logsumexp(1) - attracted) * (positives > 0)
        contrasts = sum_without_grad(rows.negative.sum()) > 0
        return mean_over_counted(per_row.sum() * contrasts, (positives > 0).sum())
