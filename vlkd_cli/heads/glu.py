"""The gated head of SAIL."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt

LARGEST = 1000.0
"""Both branches are clipped to this before they are multiplied, as 16-bit products overflow."""


class GLUHead(nn.Module):
    """A layer norm, two linear layers whose outputs are multiplied, and a linear layer.

    y = G(relu6(clip(F1 x)) * clip(F2 x)) with x normalized; F1 and F2 widen by `factor`.

    Args:
        width: of the projected feature.
        factor: hidden width over the width of the input.

    Source: Zhang et al., Assessing and Learning Alignment of Unimodal Vision and Language Models
    (SAIL), CVPR 2025, arXiv:2412.04616, section 4; their module SwishGLU with ReLU6.
    """

    formula = (
        r"y = G \left( \mathrm{relu6}(\mathrm{clip}(F_1 \hat{x})) \odot \mathrm{clip}(F_2 \hat{x})"
        r" \right), \quad \hat{x} = \mathrm{LN}(x)"
    )

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        width: PositiveInt,
        factor: PositiveInt = 8,
    ) -> None:
        super().__init__()
        self.width = width
        self.norm = nn.LayerNorm(width_in)
        self.gate = nn.Linear(width_in, factor * width_in)
        self.value = nn.Linear(width_in, factor * width_in)
        self.out = nn.Linear(factor * width_in, width)
        for layer in (self.gate, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        normed = self.norm(features)
        gate = nn.functional.relu6(self.gate(normed).clamp(-LARGEST, LARGEST))
        projected: Tensor = self.out(gate * self.value(normed).clamp(-LARGEST, LARGEST))
        return projected
