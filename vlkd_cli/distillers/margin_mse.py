"""Regression of the margin between a positive and a negative passage."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import DataFacts, Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import Positive


class MarginMSE(Distiller):
    """Match the difference of two similarities to the margin that a stronger scorer gave.

    Mean of (scale (sim(query, positive) - sim(query, negative)) - target)^2, all three sides
    trained. `vlkd synthesize` writes such margins.

    Args:
        similarity: "dot", or "cosine" for towers that normalize.
        scale: multiplies the similarities; cosine differences reach 2, margins of cross-encoders
            10, so "cosine" usually needs a scale of 10.

    Source: Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation, arXiv:2010.02666, equation 2.
    """

    direction = "symmetric"
    crosses_ranks = "nothing"
    paper = "Hofstätter et al., arXiv:2010.02666"
    formula = (
        r"L = \frac{1}{N} \sum_i \left( \alpha (q_i \cdot p_i - q_i \cdot n_i) - y_i \right)^2"
    )

    def __init__(
        self, *, similarity: Literal["dot", "cosine"] = "dot", scale: Positive = 1.0
    ) -> None:
        super().__init__()
        self.similarity, self.scale = similarity, scale

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        largest = facts.largest_target
        if self.similarity == "cosine" and largest is not None and largest > 2 * self.scale:
            raise RecipeError(
                f"distiller 'margin_mse': the largest margin of the data is {largest:g}, and"
                f" cosine differences times scale {self.scale:g} end at {2 * self.scale:g}."
                f" Set scale to {largest / 2:.3g} or more."
            )

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]],
        *,
        targets: Float[Tensor, "B T"],
    ) -> Float[Tensor, ""]:
        positive, negative = teacher
        if self.similarity == "cosine":
            student, positive, negative = unit(student), unit(positive), unit(negative)
        margin = self.scale * (student * (positive - negative)).sum(1)
        return (margin - targets[:, 0].to(margin)).square().mean()
