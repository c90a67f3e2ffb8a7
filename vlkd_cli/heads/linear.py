"""One linear layer."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt, Rate


class LinearHead(nn.Module):
    """One linear layer. It does not normalize: objectives do if it is part of their definition.

    Args:
        width: of the projected feature.
        bias: whether the layer has one.
        dropout: fraction of the incoming features that is dropped in training.
        start: "identity" passes the features on unchanged at first, so that training starts from
            the pretrained space; its width is that of the features.
    """

    formula = r"y = W x + b"

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        width: PositiveInt,
        bias: bool = True,
        dropout: Rate = 0.0,
        start: Literal["random", "identity"] = "random",
    ) -> None:
        super().__init__()
        if start == "identity" and width != width_in:
            raise ValueError(f"start: identity needs width {width_in}, that of its features")
        self.width = width
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width_in, width, bias=bias)
        initialize(self)
        if start == "identity":
            nn.init.eye_(self.linear.weight)

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
