from __future__ import annotations

import pytest
import torch

from vlkd_cli.heads.patches import PatchHead
from vlkd_cli.preprocessing import Grid


def test_a_place_holds_its_pixels_by_row_column_and_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = PatchHead(3, Grid(2, 3, 2), normalize=False)(images)
    assert patches.shape == (2, 6, 12)
    # The second place of the second row, in the second picture.
    expected = images[1, :, 2:4, 2:4].permute(1, 2, 0).flatten()
    assert patches[1, 4].equal(expected)


def test_a_normalized_place_has_mean_zero_and_variance_one() -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 7 + 3
    patches = PatchHead(3, Grid(2, 2, 4))(images)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 4), rtol=0, atol=1e-5)
    flat = PatchHead(3, patch_px=4)(torch.ones(1, 3, 4, 4))
    assert flat.equal(torch.zeros(1, 1, 48))


def test_the_size_of_a_place_is_the_grids_or_ones_own() -> None:
    assert PatchHead(3, Grid(7, 7, 32)).width == 3 * 32 * 32
    assert PatchHead(3, Grid(7, 7, 32), patch_px=16).width == 3 * 16 * 16
    with pytest.raises(ValueError, match="no grid to take `patch_px` from"):
        PatchHead(3)
    with pytest.raises(ValueError, match="patches of 5 px do not divide pictures of 8 x 8 px"):
        PatchHead(3, patch_px=5)(torch.zeros(1, 3, 8, 8))


def test_joined_patches_are_the_pictures_that_were_split() -> None:
    images = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    head = PatchHead(3, patch_px=4)
    assert torch.equal(head.join(head.split(images), (8, 12)), images)
