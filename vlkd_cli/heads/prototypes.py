"""The DINO head with its prototype layer."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt


class PrototypeHead(nn.Module):
    """Several linear layers down to a bottleneck of length 1, then its cosines to prototypes.

    The prototypes are stored as plain rows and normalized when used, so that deepcopy, moving
    averages and state dicts of plain tensors work; their lengths have no effect. For one prototype
    layer shared by student and teacher use head `mlp` and let the objective own the layer
    (`prototypes` of distillers dino and protocpc).

    Args:
        num_prototypes: number of prototypes, the width of the output.
        bottleneck: width of the normalized feature before them.
        layers: number of linear layers up to the bottleneck.
        hidden: width between the layers.
        norm: what normalizes the hidden features.
        activation: after each hidden layer.

    Source: Caron et al., DINO, arXiv:2104.14294, appendix C; facebookresearch/dino,
        vision_transformer.py:DINOHead with norm_last_layer.
    """

    formula = r"y_k = \frac{z^\top c_k}{\|z\| \, \|c_k\|}, \quad z = \mathrm{mlp}(x)"

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        num_prototypes: PositiveInt = 65536,
        bottleneck: PositiveInt = 256,
        layers: PositiveInt = 3,
        hidden: PositiveInt = 2048,
        norm: Literal["none", "batch"] = "none",
        activation: Literal["gelu", "relu"] = "gelu",
    ) -> None:
        super().__init__()
        self.width = num_prototypes
        self.layers = nn.Sequential()
        wide = width_in
        for _ in range(layers - 1):
            self.layers.append(nn.Linear(wide, hidden))
            if norm == "batch":
                self.layers.append(nn.BatchNorm1d(hidden))
            self.layers.append(nn.GELU() if activation == "gelu" else nn.ReLU())
            wide = hidden
        self.layers.append(nn.Linear(wide, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, bottleneck) / bottleneck**0.5)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        return F.linear(
            F.normalize(self.layers(features), dim=-1), F.normalize(self.prototypes, dim=-1)
        )
