"""Which positions of a picture are hidden from a tower. Masks are made in the loader, from a seed
of the sample, its view and its picture alone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.types import (
    PositiveInt,
    PositiveRange,
    Probability,
    ProbabilityRange,
    ProperFraction,
)

FRUITLESS_RECTANGLES = 10


class Mask:
    """A mask over a grid; takes the grid from the engine and its recipe keys as keyword-only
    arguments.

    Raises:
        ValueError: the keys do not fit the grid.
    """

    varies_with: ClassVar[tuple[str, ...]] = ()
    """Keys that make the number of hidden positions vary from picture to picture where they are
    set."""

    def __call__(self, rng: random.Random) -> Tensor:
        """`[T]` bool, True for hidden positions."""
        raise NotImplementedError


class ViewMask(NamedTuple):
    """The mask of a view, for each of its pictures."""

    mask: Mask
    pictures: int


class RandomMask(Mask):
    """Positions chosen uniformly, always the same number.

    Args:
        share: fraction of the positions that is hidden; T - floor(T * (1 - share)) of T.
        unit_px: hide squares of this side, a multiple of a patch's; by default single positions.

    Source: He et al., Masked Autoencoders, arXiv:2111.06377, section 3; with units, Xie et al.,
        SimMIM, arXiv:2111.09886, section 3.2.
    """

    varies_with: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, grid: Grid, *, share: ProperFraction = 0.75, unit_px: PositiveInt | None = None
    ) -> None:
        unit = 1 if unit_px is None else unit_px // grid.patch_px
        if unit_px is not None and (
            unit_px % grid.patch_px or grid.rows % unit or grid.columns % unit
        ):
            raise ValueError(
                f"unit_px {unit_px} does not fit a grid of {grid.rows} x {grid.columns} positions"
                f" of {grid.patch_px} px; it must be a multiple of {grid.patch_px} that divides"
                f" {grid.rows * grid.patch_px}"
            )
        self.unit = unit
        self.rows, self.columns = grid.rows // unit, grid.columns // unit
        units = self.rows * self.columns
        # A share such as 0.9 has no exact binary form, and its rest must not fall below the
        # integer.
        self.num_hidden = units - math.floor(units * (1 - share) + 1e-9)

    def __call__(self, rng: random.Random) -> Tensor:
        hidden = torch.zeros(self.rows * self.columns, dtype=torch.bool)
        hidden[rng.sample(range(len(hidden)), self.num_hidden)] = True
        units = hidden.view(self.rows, self.columns)
        return units.repeat_interleave(self.unit, 0).repeat_interleave(self.unit, 1).flatten()


class BlockMask(Mask):
    """Rectangles at random positions until enough positions are hidden.

    Args:
        hidden: number of hidden positions, exactly; 75 where neither this nor `share` is given.
        share: instead, the bounds of the fraction that is sampled for each picture; what
            rectangles leave over stays visible.
        probability: of hiding anything, with `share`.
        smallest: area of the smallest rectangle, in positions.
        aspect: lowest and highest height over width, sampled on a logarithmic scale.

    Source: Bao et al., BEiT, arXiv:2106.08254, algorithm 1; microsoft/unilm, beit/
        masking_generator.py; with `share`, Zhou et al., iBOT, arXiv:2111.07832, appendix E. Differs
        in hiding single positions after ten rectangles in a row that do not fit, so that `hidden`
        is exact.
    """

    varies_with: ClassVar[tuple[str, ...]] = ("share",)
    no_effect_with: ClassVar[Mapping[str, tuple[str, ...]]] = {"share": ("hidden",)}
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "share": {None: ("probability",)},
    }

    def __init__(
        self,
        grid: Grid,
        *,
        hidden: PositiveInt | None = None,
        share: ProbabilityRange | None = None,
        probability: Probability = 1.0,
        smallest: PositiveInt = 16,
        aspect: PositiveRange = (0.3, 3.3),
    ) -> None:
        if share is not None and hidden is not None:
            raise ValueError(
                "'hidden' and 'share' both set how many positions are hidden; remove one"
            )
        if share is None and probability < 1:
            raise ValueError("'probability' has no effect without 'share'; remove it")
        most = grid.num_places if share is None else int(share[1] * grid.num_places)
        if share is not None and most < smallest:
            raise ValueError(
                f"share hides at most {most} of {grid.num_places} positions, and the smallest"
                f" rectangle has {smallest}, so nothing would be hidden; lower 'smallest'"
            )
        self.grid, self.share, self.probability = grid, share, probability
        self.num_hidden = 75 if hidden is None else hidden
        if share is None and self.num_hidden > grid.num_places:
            raise ValueError(
                f"hidden: {self.num_hidden} of {grid.num_places} positions; choose fewer"
            )
        self.smallest, self.aspect = smallest, (math.log(aspect[0]), math.log(aspect[1]))

    def __call__(self, rng: random.Random) -> Tensor:
        hidden = torch.zeros(self.grid.rows, self.grid.columns, dtype=torch.bool)
        if self.share is None:
            self._cover(hidden, self.num_hidden, rng)
            visible = (~hidden.flatten()).nonzero().flatten().tolist()
            missing = self.num_hidden - (len(hidden.flatten()) - len(visible))
            hidden.view(-1)[rng.sample(visible, missing)] = True
        elif rng.random() < self.probability:
            share = rng.uniform(*self.share)
            self._cover(hidden, int(share * self.grid.num_places), rng)
        return hidden.flatten()

    def _cover(self, hidden: Tensor, wanted: int, rng: random.Random) -> None:
        """Hide rectangles until `wanted` positions are hidden or ten in a row do not fit."""
        fruitless = 0
        while (left := wanted - int(hidden.sum())) > 0 and fruitless < FRUITLESS_RECTANGLES:
            area = rng.uniform(self.smallest, max(left, self.smallest))
            aspect = math.exp(rng.uniform(*self.aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            fruitless += 1
            if not (0 < height <= self.grid.rows and 0 < width <= self.grid.columns):
                continue
            top = rng.randint(0, self.grid.rows - height)
            side = rng.randint(0, self.grid.columns - width)
            window = hidden[top : top + height, side : side + width]
            if 0 < height * width - int(window.sum()) <= left:
                window.fill_(True)
                fruitless = 0


def is_fixed(mask: Mask) -> bool:
    """Whether a mask hides the same number of positions in every picture."""
    return all(getattr(mask, key, None) is None for key in mask.varies_with)
