"""What recipes may ask of each modality."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems_with
from vlkd_cli.recipe.modality import FACTS, has_views, is_named
from vlkd_cli.recipe.types import MODALITY_NAMES


def test_every_modality_is_described():
    assert tuple(FACTS) == MODALITY_NAMES


@pytest.mark.parametrize(
    ("name", "table", "named", "viewed"),
    [
        ("image", "sample", False, True),
        ("text", "text", True, False),
        ("mesh", "sample", False, True),
    ],
)
def test_inputs_are_read_by_view_or_by_name(name, table, named, viewed):
    assert (FACTS[name].table, is_named(name), has_views(name)) == (table, named, viewed)


def test_nothing_is_claimed_of_an_unknown_modality():
    assert not is_named(None) and not has_views(None)


def test_shuffling_is_refused_of_a_tower_that_reads_texts():
    lines = problems_with("towers.slow_text={follows: text, shuffle: true}")
    assert [line for line in lines if "shuffle" in line] == [
        "towers.slow_text.shuffle: mixes the images of several processes, and this tower reads"
        " texts. Remove it."
    ]
