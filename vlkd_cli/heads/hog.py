"""Histograms of oriented gradients of each patch, a target for masked image modeling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import NonNegativeInt, PositiveInt


class HOGHead(nn.Module):
    """Histograms of gradient directions of each patch, without weights: `reads: input`.

    Of each channel and cell the gradient magnitudes by direction, at length 1 over the directions.
    A patch's vector is channel, direction, row of the cell, column of the cell. In the formula, a
    and d are the differences across and down at pixel u, w is the window and B the number of bins.

    Args:
        bins: directions in half a turn.
        cell: side of a cell in pixels; the side of a patch is a multiple of it.
        window: side in pixels of the Gaussian that weights magnitudes, repeated over the picture,
            with a standard deviation of half its side, rounded down; 0 for none.

    Source: Wei et al., Masked Feature Prediction (MaskFeat), CVPR 2022, arXiv:2112.09133, section
    3; facebookresearch/SlowFast, slowfast/models/operators.py:HOGLayerC.
    """

    formula = (
        r"y_c = \frac{h_c}{\|h_c\|}, \quad h_{c,b} = \sum_{u \in c} w_u \sqrt{a_u^2 + d_u^2}"
        r" \left[ \left\lfloor \tfrac{B}{\pi} \mathrm{atan2}(a_u, d_u) \right\rfloor"
        r" \equiv b \pmod{B} \right]"
    )
    has_weights = False

    def __init__(
        self,
        width_in: int,
        grid: Grid | None = None,
        *,
        bins: PositiveInt = 9,
        cell: PositiveInt = 8,
        window: NonNegativeInt = 16,
    ) -> None:
        super().__init__()
        self.bins, self.cell, self.window = bins, cell, window
        if grid is None:
            raise ValueError("this encoder has no grid of positions")
        self.patch_px = grid.patch_px
        if self.patch_px % cell:
            raise ValueError(f"cells of {cell} px do not fill patches of {self.patch_px} px")
        self.width = 3 * bins * (self.patch_px // cell) ** 2

    def forward(self, pictures: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T E"]:
        padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect")
        across = _smoothed(padded[..., :-2] - padded[..., 2:], dim=2)
        down = _smoothed(padded[..., :-2, :] - padded[..., 2:, :], dim=3)
        magnitudes = torch.hypot(across, down)
        turns = torch.atan2(across, down) / math.pi * self.bins
        directions = turns.floor().long() % self.bins
        if self.window:
            magnitudes = magnitudes * self._weights(magnitudes)
        histograms = magnitudes.new_zeros(*pictures.shape[:2], self.bins, *pictures.shape[2:])
        histograms.scatter_(2, directions[:, :, None], magnitudes[:, :, None])
        cells = histograms.unflatten(4, (-1, self.cell)).unflatten(3, (-1, self.cell)).sum((4, 6))
        cells = F.normalize(cells, dim=2)
        side = self.patch_px // self.cell
        squares = cells.unfold(3, side, side).unfold(4, side, side)
        return squares.permute(0, 3, 4, 1, 2, 5, 6).flatten(3).flatten(1, 2)

    def _weights(self, like: Float[Tensor, "B C H W"]) -> Float[Tensor, "H W"]:
        side, deviation = self.window, max(self.window // 2, 1)
        offsets = torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2
        bell = (-0.5 * (offsets / deviation).square()).exp()
        bell = bell / bell.sum()
        height, width = like.shape[2:]
        tiled = bell.outer(bell).repeat(-(-height // side), -(-width // side))
        return tiled[:height, :width]


def _smoothed(differences: Tensor, dim: int) -> Tensor:
    """Sobel's other factor, [1, 2, 1], across the direction of the differences."""
    count = differences.shape[dim] - 2
    return (
        differences.narrow(dim, 0, count)
        + 2 * differences.narrow(dim, 1, count)
        + differences.narrow(dim, 2, count)
    )
