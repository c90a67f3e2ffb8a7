"""The layers of the DINO head: linear, norm and activation, repeated, then a linear layer, with or
without a bottleneck."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt, Rate


class MLPHead(nn.Module):
    """Several linear layers with norm, activation and dropout between them.

    It does not normalize its output: objectives do if it is part of their definition.

    Args:
        width: of the projected feature.
        layers: number of linear layers, the bottleneck's not counted; 1 is a single linear layer.
        hidden: width between the layers.
        bottleneck: width that the layers end at before one more linear layer, without a bias, leads
            to `width`; none by default.
        norm: what normalizes the hidden features.
        activation: after each hidden layer.
        dropout: fraction of the hidden features that is dropped in training.
        last_norm: batch norm after the last layer, which then has no bias; "batch_plain" has no
            scale and shift.

    Source: Caron et al., DINO, arXiv:2104.14294, appendix C (projection head): 3 layers, hidden
    2048, bottleneck 256, GELU, weights truncated normal with std 0.02, biases zero. Differs in
    leaving the bottleneck's normalization and the prototypes to head 'prototypes'.
    """

    formula = (
        r"h_0 = x, \quad h_l = \sigma(\mathrm{norm}(W_l h_{l-1} + b_l)), \quad"
        r" y = W_L h_{L-1} + b_L"
    )

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        width: PositiveInt,
        layers: PositiveInt = 3,
        hidden: PositiveInt = 2048,
        bottleneck: PositiveInt | None = None,
        norm: Literal["none", "batch", "layer"] = "none",
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        dropout: Rate = 0.0,
        last_norm: Literal["none", "batch", "batch_plain"] = "none",
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential()
        wide = width_in
        for _ in range(layers - 1):
            # A batch norm has its own shift, so the bias before it would have no effect.
            self.layers.append(nn.Linear(wide, hidden, bias=norm != "batch"))
            if norm != "none":
                self.layers.append(
                    nn.BatchNorm1d(hidden) if norm == "batch" else nn.LayerNorm(hidden)
                )
            self.layers.append(ACTIVATIONS[activation]())
            if dropout:
                self.layers.append(nn.Dropout(dropout))
            wide = hidden
        plain = last_norm == "none"
        self.layers.append(nn.Linear(wide, bottleneck or width, bias=plain or bool(bottleneck)))
        if bottleneck is not None:
            self.layers.append(nn.Linear(bottleneck, width, bias=False))
        if not plain:
            self.layers.append(nn.BatchNorm1d(width, affine=last_norm == "batch"))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        projected: Tensor = self.layers(features)
        return projected


ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
