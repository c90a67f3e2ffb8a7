"""The output that is read, as it is."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid


class SelectHead(nn.Module):
    """Give what is read, so that `at:` can select positions of a tower that has no other head.

    It has no weights, so a frozen tower can carry it: `code: {name: select, reads: tokens, at:
    hidden}`.
    """

    formula = r"y = x"
    has_weights = False

    def __init__(self, width_in: int, grid: Grid | None = None) -> None:
        super().__init__()
        self.width = width_in

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return features
