"""Squared distance between inner layers of a student and of its teacher."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Distiller, Widths, widths_of
from vlkd_cli.errors import RecipeError


class LayerDistance(Distiller):
    """Mean squared difference of a student's layer, mapped to the teacher's width, and a teacher's:
    over features, over positions where the sides have positions, and over rows.

    Where two pictures' grids differ, the student's positions are resized bilinearly to the
    teacher's.

    Args:
        regressor: the map: `linear`, with bias, trained and then thrown away; `none`; or `auto`,
            linear where the widths differ.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv:1412.6550, equation
    3. Differs in the mean over features, and in a linear map instead of a convolution.
    """

    direction = "one_way"
    crosses_ranks = "nothing"
    paper = "Romero et al. 2015, arXiv:1412.6550"
    formula = r"L = \frac{1}{NTD} \sum_{i,p} \|A s_{ip} + b - t_{ip}\|^2"

    def __init__(self, *, regressor: Literal["auto", "linear", "none"] = "auto") -> None:
        super().__init__()
        self.regressor = regressor
        self.map: nn.Module = nn.Identity()

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert teacher is not None
        ours, theirs = widths_of(student)[0], widths_of(teacher)[0]
        if self.regressor == "none" and ours != theirs:
            raise RecipeError(
                f"the student's layer is {ours} wide and the teacher's {theirs}. Set regressor:"
                " auto."
            )
        if self.regressor == "linear" or (self.regressor == "auto" and ours != theirs):
            self.map = nn.Linear(ours, theirs)
            # The same start on every rank, whatever its random state.
            generator = torch.Generator().manual_seed(0)
            nn.init.uniform_(self.map.weight, -(ours**-0.5), ours**-0.5, generator=generator)
            nn.init.zeros_(self.map.bias)

    def forward(
        self, student: Float[Tensor, "... D"], teacher: Float[Tensor, "... E"]
    ) -> Float[Tensor, ""]:
        ours, theirs = self.map(student), teacher.detach()
        if ours.ndim == 3 and ours.shape[1] != theirs.shape[1]:
            ours = _resized(ours, theirs.shape[1])
        return F.mse_loss(ours, theirs)


def _resized(positions: Tensor, count: int) -> Tensor:
    """`[B, T, D]` on a square grid as `[B, count, D]` on another."""
    old, new = (round(number**0.5) for number in (positions.shape[1], count))
    if old * old != positions.shape[1] or new * new != count:
        raise RecipeError(
            f"{positions.shape[1]} positions of the student and {count} of the teacher do not form"
            " square grids, so one cannot be resized to the other. Compare `.pooled` outputs."
        )
    grid = positions.transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, (new, new), mode="bilinear", antialias=new < old)
    return grid.flatten(2).transpose(1, 2)
