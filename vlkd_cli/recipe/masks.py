"""Which views of a recipe have a mask, and whether it hides as many positions in every picture."""

from __future__ import annotations

from vlkd_cli.recipe.address import MAIN_VIEW
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import DataSpec, ViewSpec


def mask_of(data: DataSpec | None, view: str) -> ViewSpec | None:
    """The view where it has a mask; a view written as null has none."""
    if data is None:
        return None
    spec = data.augment if view == MAIN_VIEW else data.views.get(view)
    return spec if spec is not None and spec.mask is not None else None


def mask_varies(view: ViewSpec) -> bool:
    """Whether a view's mask hides another number of positions in each picture."""
    assert view.mask is not None
    keys = attributes_of("mask", view.mask.name).get("varies_with", ())
    return any(view.mask.keys.get(key) is not None for key in keys)
