"""A transformer over all positions, from those that an encoder saw."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlkd_cli.heads.linear import initialize
from vlkd_cli.numerics.positions import sine_cosine
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt


class DecoderHead(nn.Module):
    """Transformer blocks over the positions of a tower whose hidden positions are learned tokens.

    `paint: {name: decoder, reads: tokens, width: 768, at: hidden}` with `masks: drop` is MAE's
    decoder. In the formula, P are the position embeddings and m is the learned token.

    Args:
        width: of the output at each position.
        width_inner: of the blocks; a multiple of 4 and of `heads`.
        layers: blocks.
        heads: attention heads of a block.
        fill: add a learned token at each hidden position; false for features that already
            represent the hidden positions, such as those of head `regressor`.

    Source: He et al., MAE, CVPR 2022, arXiv:2111.06377, section 3 (decoder width 512, 8 blocks, 16
    heads); facebookresearch/mae, models_mae.py. Differs in leaving out the class token.
    """

    formula = (
        r"Y = W_2 \, \mathrm{LN}(\mathrm{blocks}(Z + P)) + b_2, \quad"
        r" Z_p = \begin{cases} W_1 x_p + b_1 & p \text{ visible} \\ m & p \text{ hidden}"
        r" \end{cases}"
    )

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        width: PositiveInt,
        width_inner: PositiveInt = 512,
        layers: PositiveInt = 8,
        heads: PositiveInt = 16,
        fill: bool = True,
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        if grid is None:
            raise ValueError("the tower has no positions to decode")
        if width_inner % heads:
            raise ValueError(f"width_inner {width_inner} is not a multiple of {heads} heads")
        self.width = width
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.inner = nn.Linear(width_in, width_inner)
        self.blocks = nn.ModuleList(
            Block(width_inner, heads, qkv_bias=True, norm_layer=norm) for _ in range(layers)
        )
        self.norm = norm(width_inner)
        self.outer = nn.Linear(width_inner, width)
        self.mask_token = nn.Parameter(torch.zeros(width_inner)) if fill else None
        positions = sine_cosine(width_inner, grid.rows, grid.columns)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        initialize(self)
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    @property
    def gives_at(self) -> Literal["all"] | None:
        """All positions where the others are filled in, else those that it reads."""
        return None if self.mask_token is None else "all"

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        hidden: Bool[Tensor, "B P"] | None = None,
        at: Literal["all", "hidden", "visible"] = "visible",
    ) -> Float[Tensor, "B Q E"]:
        """Rows for the positions of `gives_at`.

        Args:
            hidden: which positions are hidden; None: none is.
            at: the positions that the rows represent, where some are hidden.
        """
        rows = self.inner(tokens)
        if hidden is None or at == "all":
            rows = rows + self.positions
        else:
            rows = self._at_positions(rows, hidden if at == "hidden" else ~hidden)
        for block in self.blocks:
            rows = block(rows)
        predicted: Tensor = self.outer(self.norm(rows))
        return predicted

    def _at_positions(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Rows of the chosen positions with their position embeddings, and the learned token at
        the others."""
        if self.mask_token is None:
            every = self.positions.expand(len(rows), -1, -1)
            here: Tensor = every[chosen].unflatten(0, (len(rows), -1))
            return rows + here
        whole = self.mask_token.to(rows.dtype).expand(*chosen.shape, -1)
        filled: Tensor = whole.masked_scatter(chosen[:, :, None].expand_as(whole), rows)
        return filled + self.positions
