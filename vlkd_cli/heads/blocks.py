"""Transformer layers over a tower's tokens, and the class token with the mean of the patches."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt, Rate

EPS = 1e-5


class BlocksHead(nn.Module):
    """Transformer blocks over all tokens of a frozen image encoder; the feature is the class token
    joined with the mean of the patches, without registers.

    `{name: blocks, reads: tokens}` on a frozen DINOv2 is the image side of dino.txt.

    Args:
        layers: blocks.
        heads: attention heads of a block.
        width: of the feature; twice the width of the tokens leaves out the projection of both
            halves, and is the default.
        hidden: width inside the gated MLP; by default 8/3 of the tokens' width, rounded up to a
            multiple of 64.
        drop_path: rate of stochastic depth in each block.
        class_token: `model`: the model's own; `mean`: the mean of the patches takes its position,
            for models without one (convolutional networks, Swin, SigLIP).

    Raises:
        RecipeError: the tower has no class token, or has one that `mean` would leave out.

    Source: Jose et al., DINOv2 Meets Text (dino.txt), CVPR 2025, arXiv:2412.16334, section 3.2:
    blocks of DINOv2 without a bias of queries, keys and values, LayerScale from 1e-5, SwiGLU.
    """

    formula = (
        r"y = \left[ W z_{\mathrm{cls}}, \; \frac{1}{P} \sum_{p=1}^{P} W z_p \right], \quad"
        r" z = \mathrm{LN}(\mathrm{blocks}(x))"
    )

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        layers: PositiveInt = 2,
        heads: PositiveInt = 16,
        width: PositiveInt | None = None,
        hidden: PositiveInt | None = None,
        drop_path: Rate = 0.3,
        class_token: Literal["model", "mean"] = "model",
    ) -> None:
        from timm.layers import SwiGLU
        from timm.models.vision_transformer import Block

        super().__init__()
        if grid is None:
            raise ValueError("it reads the tokens of an image tower: say `reads: tokens`")
        if width_in % heads:
            raise ValueError(f"tokens of width {width_in} are not a multiple of {heads} heads")
        self.class_token = class_token
        self.width = width or 2 * width_in
        if self.width % 2:
            raise ValueError(f"width {width} is odd: half of it is the class token's")
        hidden = hidden or -(-int(8 * width_in / 3) // 64) * 64
        norm = partial(nn.LayerNorm, eps=EPS)
        self.blocks = nn.ModuleList(
            Block(
                width_in,
                heads,
                mlp_ratio=hidden / width_in,
                init_values=1e-5,
                drop_path=drop_path,
                norm_layer=norm,
                mlp_layer=SwiGLU,
                act_layer=nn.SiLU,
            )
            for _ in range(layers)
        )
        self.norm = norm(width_in)
        is_whole = self.width == 2 * width_in
        self.out = nn.Identity() if is_whole else nn.Linear(width_in, self.width // 2, bias=False)

    def check_prefix(self, count: int) -> None:
        """Refuse a model whose tokens do not fit; the tower calls it when it is built.

        Args:
            count: class and register tokens.

        Raises:
            RecipeError: it has no class token, or one that `class_token: mean` would leave out.
        """
        if self.class_token == "mean" and count:
            raise RecipeError(
                "head 'blocks': class_token: mean is for models without a class token, and the"
                " tower's has one. Remove it."
            )
        if self.class_token == "model" and not count:
            raise RecipeError(
                "head 'blocks' needs a class token, and the tower's model has none. Say"
                " `class_token: mean`, or use another model or a head that reads the feature."
            )

    def forward(
        self,
        patches: Float[Tensor, "B T D"],
        prefix: Float[Tensor, "B P D"] | None = None,
    ) -> Float[Tensor, "B E"]:
        self.check_prefix(0 if prefix is None else prefix.shape[1])
        if self.class_token == "mean":
            prefix = patches.mean(dim=1, keepdim=True)
        assert prefix is not None
        tokens = torch.cat([prefix, patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.out(self.norm(tokens))
        mean = tokens[:, prefix.shape[1] :].mean(dim=1)
        return torch.cat([tokens[:, 0], mean], dim=1)
