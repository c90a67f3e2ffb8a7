"""Sizes that a recipe gives, and those that do not fit."""

from __future__ import annotations

import pytest

from vlkd_cli.builders.pointnet.sizes import sizes_of
from vlkd_cli.errors import RecipeError


def test_sizes_of_the_authors_are_lists_of_scales():
    ssg, msg = sizes_of("ssg", {}), sizes_of("msg", {})
    assert ssg.radii == [[0.2], [0.4]] and ssg.widths[0] == [[64, 64, 128]]
    assert msg.neighbors == [[16, 32, 128], [32, 64, 128]] and msg.widths[2] == [256, 512, 1024]


def test_british_spelling_is_understood():
    sizes = sizes_of("ssg", {"centres": [64, 16], "neighbours": [16, 8]})
    assert sizes.centers == [64, 16] and sizes.neighbors == [[16], [8]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"radius": [1, 2]}, "config.radius: unknown key. Did you mean 'radii'?"),
        ({"radii": [0.1]}, "config.radii: expected 2 entries, one for each stage"),
        ({"radii": 0.2}, "config.radii: expected 2 entries"),
        ({"centers": [64, 128]}, "more centers than the first"),
        ({"centers": [64, 0]}, "config.centers: expected integers above 0, got 0"),
        ({"centers": [64.5, 4]}, "config.centers: expected integers above 0, got 64.5"),
        ({"neighbors": [[16, 32], 8]}, "stage 1 has unequal numbers of scales: neighbors 2"),
        ({"widths": [[8], [[8], []], [8]]}, "a scale has no layers"),
        ({"widths": [[8], [8], [[8], [8]]]}, "the third stage has one scale"),
        ({"widths": [[8], [True], [8]]}, "expected integers above 0, got True"),
        ({"width": 0}, "config.width: expected a number above 0"),
        ({"width": float("nan")}, "config.width: expected a number above 0"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(config, message):
    with pytest.raises(RecipeError) as caught:
        sizes_of("ssg", config)
    assert message in str(caught.value) and "\n" not in str(caught.value)
