"""One linear layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt, Probability


class LinearHead(nn.Module):
    """One linear layer. It does not normalize: objectives do where their definition says so.

    Args:
        width: of the projected feature.
        bias: whether the layer has one.
        dropout: fraction of the incoming features that is dropped in training.
    """

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        width: PositiveInt,
        bias: bool = True,
        dropout: Probability = 0.0,
    ) -> None:
        super().__init__()
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width_in, width, bias=bias)
        initialize(self)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        projected: Tensor = self.linear(self.dropout(features))
        return projected


def initialize(module: nn.Module) -> None:
    """Weights of all linear layers from a normal distribution (std 0.02, cut at two units), biases
    zero, as DINO's head has them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
