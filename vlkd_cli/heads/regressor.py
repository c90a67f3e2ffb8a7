"""Features of hidden positions, predicted from those of the visible ones."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlkd_cli.heads.linear import initialize
from vlkd_cli.numerics.positions import sine_cosine
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import PositiveInt


class RegressorHead(nn.Module):
    """Cross-attention from learned tokens at the hidden positions to the visible positions.

    Reads the tokens of a tower with `masks: drop`, gives `[B, m, D]`, one row for each hidden
    position, of the width that it reads. In the formula, X are the visible tokens, Q_0 is the
    learned token, and P_v and P_h are the position embeddings of visible and hidden positions.

    Args:
        layers: blocks.
        heads: attention heads of a block.

    Source: Chen et al., Context Autoencoder, IJCV 2023, arXiv:2202.03026, section 3.1 (latent
    contextual regressor): keys are the visible positions and the queries themselves.
    """

    formula = (
        r"Q_l = A_l + \mathrm{mlp}(\mathrm{LN}(A_l)), \quad A_l = Q_{l-1} + \mathrm{attention}"
        r"(\mathrm{LN}(Q_{l-1}) + P_h, \; C_l + [P_v, P_h], \; C_l), \quad"
        r" C_l = \mathrm{LN}([X, Q_{l-1}])"
    )
    reads_at: ClassVar[Literal["visible"]] = "visible"
    gives_at: ClassVar[Literal["hidden"]] = "hidden"

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        layers: PositiveInt = 4,
        heads: PositiveInt = 12,
    ) -> None:
        super().__init__()
        if grid is None:
            raise ValueError("the tower has no positions to predict")
        if width_in % heads:
            raise ValueError(f"features of width {width_in} are not a multiple of {heads} heads")
        self.width = width_in
        self.query = nn.Parameter(torch.zeros(width_in))
        self.blocks = nn.ModuleList(_Block(width_in, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width_in, eps=1e-6)
        positions = sine_cosine(width_in, grid.rows, grid.columns)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor
        initialize(self)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(
        self, tokens: Float[Tensor, "B T D"], hidden: Bool[Tensor, "B P"] | None = None
    ) -> Float[Tensor, "B M D"]:
        if hidden is None or tokens.shape[1] == hidden.shape[1]:
            raise ValueError("head 'regressor' reads the tokens of a tower with masks: drop")
        every = self.positions.to(tokens.dtype).expand(len(hidden), -1, -1)
        here = every[~hidden].unflatten(0, (len(hidden), -1))
        there = every[hidden].unflatten(0, (len(hidden), -1))
        queries = self.query.to(tokens.dtype).expand_as(there)
        for block in self.blocks:
            queries = block(queries, there, tokens, here)
        predicted: Tensor = self.norm(queries)
        return predicted


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.norm_key = nn.LayerNorm(width, eps=1e-6)
        self.norm_inner = nn.LayerNorm(width, eps=1e-6)
        self.to_query, self.to_key = nn.Linear(width, width), nn.Linear(width, width)
        self.to_value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.inner = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, queries: Tensor, positions: Tensor, tokens: Tensor, token_positions: Tensor
    ) -> Tensor:
        context = self.norm_key(torch.cat([tokens, queries], dim=1))
        where = torch.cat([token_positions, positions], dim=1)
        attended = F.scaled_dot_product_attention(
            self._split(self.to_query(self.norm_query(queries) + positions)),
            self._split(self.to_key(context + where)),
            self._split(self.to_value(context)),
        )
        queries = queries + self.out(attended.transpose(1, 2).flatten(2))
        output: Tensor = queries + self.inner(self.norm_inner(queries))
        return output

    def _split(self, rows: Tensor) -> Tensor:
        split: Tensor = rows.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split
