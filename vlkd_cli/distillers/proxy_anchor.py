"""Proxy anchor loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.class_weights import class_weights, require_num_classes
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import all_reduce_sum, sum_without_grad
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegative, Positive, PositiveInt

_LARGEST_EXPONENT = 80.0


class ProxyAnchor(Distiller):
    """Let a learned row per class attract the rows of its class and repel all others.

    With s the cosine of a row and a class row: log(1 + sum exp(-alpha (s - margin))) over the rows
    of the class, a mean over the classes in the global batch, plus log(1 + sum exp(alpha (s +
    margin))) over all other rows, a mean over all classes.

    Args:
        num_classes: rows of the classifier.
        alpha: sharpness.
        margin: cosine by which both terms are shifted.

    Source: Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv:2003.13911,
    equation 4.
    """

    direction = "symmetric"
    crosses_ranks = "two sums per class with gradient"
    paper = "Kim et al., CVPR 2020, arXiv:2003.13911"
    formula = (
        r"L = \frac{1}{|C^+|} \sum_{c \in C^+}"
        r" \log\left(1 + \sum_{i: y_i = c} e^{-\alpha (s_{ic} - \delta)}\right)"
        r" + \frac{1}{|C|} \sum_{c \in C}"
        r" \log\left(1 + \sum_{i: y_i \neq c} e^{\alpha (s_{ic} + \delta)}\right),"
        r" \quad s_{ic} = \cos(x_i, w_c)"
    )

    weights: nn.Parameter

    def __init__(
        self, *, num_classes: PositiveInt, alpha: Positive = 32.0, margin: NonNegative = 0.1
    ) -> None:
        super().__init__()
        # Sums over ranks cannot be shifted by a maximum first, so exponents have to stay small.
        if alpha * (1 + margin) > _LARGEST_EXPONENT:
            raise RecipeError(
                f"distiller 'proxy_anchor': alpha {alpha:g} with margin {margin:g} overflows."
                f" Keep alpha * (1 + margin) at most {_LARGEST_EXPONENT:g}."
            )
        self.num_classes, self.alpha, self.margin = num_classes, alpha, margin

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, tuple)
        self.weights = class_weights(self.num_classes, student[0])

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        require_num_classes("proxy_anchor", self.num_classes, facts.highest_label)

    def forward(
        self, student: Sequence[Float[Tensor, "B D"]], *, labels: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        labels = labels.repeat(len(student))
        cosines = unit(torch.cat(list(student))) @ unit(self.weights).T
        is_own = labels[:, None] == torch.arange(self.num_classes, device=labels.device)
        is_other = ~is_own & (labels >= 0)[:, None]
        attract = (-self.alpha * (cosines - self.margin)).exp() * is_own
        repel = (self.alpha * (cosines + self.margin)).exp() * is_other
        sums = all_reduce_sum(torch.stack([attract.sum(0), repel.sum(0)]))
        present = (sum_without_grad(is_own.sum(0)) > 0).sum().clamp_min(1)
        return sums[0].log1p().sum() / present + sums[1].log1p().mean()
