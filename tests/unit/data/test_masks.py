from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.recipes import problems_with
from vlkd_cli.data.masks import BlockMask, RandomMask, is_fixed
from vlkd_cli.preprocessing import Grid

VIT = Grid(14, 14, 16)


def many(mask: Any, count: int = 50) -> Tensor:
    return torch.stack([mask(random.Random(seed)) for seed in range(count)])


@pytest.mark.parametrize(
    ("grid", "keys", "hidden"),
    [
        (VIT, {}, 147),
        (Grid(6, 6, 32), {"share": 0.6, "unit_px": 32}, 22),
        (Grid(10, 1, 8), {"share": 0.9}, 9),
        (Grid(10, 1, 8), {"share": 0.7}, 7),
        (Grid(4, 4, 8), {"share": 1.0}, 16),
        (Grid(4, 4, 8), {"share": 0.0}, 0),
    ],
)
def test_a_random_mask_hides_exactly_its_share(grid: Grid, keys: Any, hidden: int) -> None:
    masks = many(RandomMask(grid, **keys))
    assert masks.shape == (50, grid.num_places) and masks.sum(1).eq(hidden).all()


def test_a_random_mask_is_uniform_and_follows_its_seed() -> None:
    mask = RandomMask(Grid(4, 4, 8), share=0.5)
    often = many(mask, 4000).float().mean(0)
    assert (often - 0.5).abs().max() < 0.03
    assert mask(random.Random(3)).equal(mask(random.Random(3)))
    assert not mask(random.Random(3)).equal(mask(random.Random(4)))


def test_units_are_hidden_as_wholes() -> None:
    masks = many(RandomMask(Grid(8, 8, 4), share=0.6, unit_px=8))
    units = masks.view(-1, 4, 2, 4, 2).permute(0, 1, 3, 2, 4).flatten(3)
    assert units.all(3).eq(units.any(3)).all() and units.all(3).flatten(1).sum(1).eq(10).all()


@pytest.mark.parametrize("unit", [12, 24, 4])
def test_units_off_the_grid_are_refused(unit: int) -> None:
    with pytest.raises(ValueError, match=f"unit_px {unit} does not fit a grid of 4 x 4 positions"):
        RandomMask(Grid(4, 4, 8), unit_px=unit)


@pytest.mark.parametrize("hidden", [75, 78, 5, 196])
def test_blocks_hide_exactly_as_many_as_asked(hidden: int) -> None:
    assert many(BlockMask(VIT, hidden=hidden)).sum(1).eq(hidden).all()


def test_blocks_hang_together_more_than_single_places() -> None:
    def neighbors(masks: Tensor) -> float:
        grid = masks.view(-1, 14, 14)
        both = (grid[:, 1:] & grid[:, :-1]).sum() + (grid[:, :, 1:] & grid[:, :, :-1]).sum()
        return float(both / masks.sum())

    blocks, places = many(BlockMask(VIT, hidden=75)), many(RandomMask(VIT, share=75 / 196))
    assert neighbors(blocks) > 1.5 * neighbors(places)


def test_a_fraction_is_sampled_for_each_picture_and_never_exceeded() -> None:
    mask = BlockMask(VIT, share=(0.1, 0.5), probability=0.5)
    counts = many(mask, 400).sum(1)
    assert counts.max() <= 98 and len(set(counts.tolist())) > 30
    assert 150 < int(counts.eq(0).sum()) < 250
    assert not is_fixed(mask)
    assert is_fixed(BlockMask(VIT)) and is_fixed(RandomMask(VIT))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden": 197}, "hidden: 197 of 196 positions; choose fewer"),
        ({"hidden": 5, "share": (0.1, 0.5)}, "both set how many positions are hidden; remove one"),
        ({"probability": 0.5}, "'probability' has no effect without 'share'"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BlockMask(VIT, **keys)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("probability: 0.5", "mask.probability: has no effect with share: null. Leave it out."),
        ("hidden: 5, share: [0.1, 0.5]", "mask.hidden: has no effect with 'share'. Leave it out."),
        ("share: [0.5, 0.1]", "mask.share: [0.5, 0.1] runs backwards: write the lower first."),
        ("aspect: [3, 0.3]", "mask.aspect: [3, 0.3] runs backwards: write the lower first."),
    ],
)
def test_a_key_without_effect_is_refused_by_the_check(keys, line):
    found = problems_with(f"data.augment={{name: standard, mask: {{name: block, {keys}}}}}")
    assert any(line in each for each in found)
