"""Which views have a mask, and whether it hides as many positions in every picture."""

from __future__ import annotations

import pytest

from vlkd_cli.recipe.masks import mask_of, mask_varies
from vlkd_cli.recipe.schema import DataSpec

DATA = DataSpec.model_validate(
    {
        "reader": "shapes",
        "augment": {"name": "standard", "mask": {"name": "random"}},
        "views": {"second": None, "third": {"name": "simclr"}},
    }
)


def test_a_mask_belongs_to_its_view_alone():
    assert mask_of(DATA, "main") is DATA.augment
    assert mask_of(DATA, "second") is None and mask_of(DATA, "third") is None
    assert mask_of(None, "main") is None


@pytest.mark.parametrize(
    ("mask", "varies"),
    [
        ({"name": "random", "share": 0.5}, False),
        ({"name": "block", "hidden": 5}, False),
        ({"name": "block", "share": [0.1, 0.5]}, True),
    ],
)
def test_a_share_between_two_fractions_varies(mask, varies):
    view = DataSpec.model_validate({"augment": {"name": "standard", "mask": mask}}).augment
    assert view is not None and mask_varies(view) is varies
