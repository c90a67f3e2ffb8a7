from __future__ import annotations

import pytest
import torch

from vlkd_cli.builders.backbone import Tokens
from vlkd_cli.errors import RecipeError
from vlkd_cli.heads.blocks import BlocksHead
from vlkd_cli.preprocessing import Grid

GRID = Grid(2, 2, 8)


def test_registers_attend_but_are_not_in_the_mean() -> None:
    torch.manual_seed(0)
    head = BlocksHead(8, GRID, heads=2, layers=1, drop_path=0.0).eval()
    with torch.no_grad():
        for block in head.blocks:
            block.ls1.gamma.fill_(0.0)
            block.ls2.gamma.fill_(0.0)
    tokens = torch.randn(2, 6, 8)
    feature = head(tokens[:, 2:], prefix=tokens[:, :2])
    normed = head.norm(tokens)
    expected = torch.cat([normed[:, 0], normed[:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(feature, expected)


def test_a_tower_without_a_class_token_is_refused() -> None:
    head = BlocksHead(8, GRID, heads=2)
    for prefix in (None, torch.zeros(1, 0, 8)):
        with pytest.raises(RecipeError, match="head 'blocks' needs a class token"):
            head(torch.randn(1, 4, 8), prefix=prefix)


def test_the_mean_of_the_patches_takes_the_position_of_a_class_token_that_the_model_lacks() -> None:
    torch.manual_seed(0)
    head = BlocksHead(8, GRID, heads=2, layers=1).eval()
    patches = torch.randn(2, 4, 8)
    expected = head(patches, prefix=patches.mean(1, keepdim=True))
    head.class_token = "mean"
    torch.testing.assert_close(head(patches, prefix=patches[:, :0]), expected, rtol=0, atol=0)
    with pytest.raises(RecipeError, match="class_token: mean is for models without"):
        head(patches, prefix=patches[:, :1])


@pytest.mark.parametrize(
    ("keys", "grid", "line"),
    [
        ({"heads": 3}, GRID, "width 8 are not a multiple of 3 heads"),
        ({"heads": 2, "width": 5}, GRID, "width 5 is odd"),
        ({"heads": 2}, None, "reads the tokens of an image tower"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(keys: dict[str, int], grid: Grid, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        BlocksHead(8, grid, **keys)


def test_tokens_of_places_have_their_prefix_first() -> None:
    assert Tokens.of_places(torch.zeros(1, 5, 8), prefix=1).prefix == 1
