"""Augmentations that make several pictures of one crop."""

from __future__ import annotations

import random

import numpy as np
import torch

from vlkd_cli.data.images.augment import (
    BYOLAugment,
    PatchGridAugment,
    QuarterTurnsAugment,
    StandardAugment,
)
from vlkd_cli.data.images.resize import Box
from vlkd_cli.preprocessing import ImageInput

EXPECTED = ImageInput(size_px=(32, 32))


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def applied(augment, height=60, width=60):
    draw = random.Random(0)
    image = pixels(height, width)
    box = augment.region((height, width), draw)
    return augment.apply(image, (height, width), box, EXPECTED, draw)


def test_quarter_turns_are_clockwise_turns_of_one_crop():
    pictures = applied(QuarterTurnsAugment())
    assert len(pictures) == QuarterTurnsAugment.pictures == 4
    for turns, picture in enumerate(pictures):
        assert picture.shape == (3, 32, 32)
        # One clockwise turn sends the first row to the last column.
        assert torch.equal(picture, pictures[0].rot90(-turns, (1, 2)))
    assert torch.equal(pictures[1][:, :, -1], pictures[0][:, 0])


def test_a_patch_grid_gives_the_center_first_and_every_cell_once():
    augment = PatchGridAugment(cell_px=20, jitter_px=0, grayscale=0.0)
    patches = applied(augment)
    assert len(patches) == PatchGridAugment.pictures == 9
    assert augment.size(EXPECTED) == (20, 20)
    whole = torch.from_numpy(pixels(60, 60)).permute(2, 0, 1)
    cells = [
        whole[:, top : top + 20, left : left + 20] for top in (0, 20, 40) for left in (0, 20, 40)
    ]
    order = [cells[4], *cells[:4], *cells[5:]]
    for patch, cell in zip(patches, order, strict=True):
        assert torch.equal(patch, cell)


def test_solarize_inverts_bright_values_alone():
    image = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 2, 2).repeat(3, 1, 1)
    changed = StandardAugment(solarize=1.0).finish(image, random.Random(0))
    assert changed[0].flatten().tolist() == [0, 127, 127, 0]


def test_byol_s_second_view_solarizes_some_pictures():
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    augment = BYOLAugment(jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.2)
    draw = random.Random(0)
    solarized = [bool((augment.finish(image, draw) == 55).all()) for _ in range(500)]
    assert 0.13 < sum(solarized) / 500 < 0.27
    assert augment.region((100, 100), draw) != Box(0, 0, 100, 100)
