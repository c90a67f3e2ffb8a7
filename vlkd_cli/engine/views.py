"""What the loader prepares of each sample: views of its pictures, their masks, and texts."""

from __future__ import annotations

import random
from collections.abc import Mapping

from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import View
from vlkd_cli.data.images.augment import Augment
from vlkd_cli.data.masks import Mask, ViewMask, is_fixed
from vlkd_cli.data.meshes.augment import CloudAugment
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import Grid, ImageInput
from vlkd_cli.recipe.address import MAIN_VIEW, Address, arrow_of, text_names
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.modality import FACTS, PAIR
from vlkd_cli.recipe.schema import DataSpec, Recipe, ViewSpec
from vlkd_cli.towers.tower import Tower

Towers = Mapping[str, Tower | MomentumTower]
USUAL = FACTS[PAIR[0]].augment
"""The augmentation of images where none is named."""


def build_views(recipe: Recipe, input_keys: Mapping[str, str], towers: Towers) -> dict[str, View]:
    """A view for each key of `Batch.inputs` and the tower that reads it.

    Raises:
        RecipeError: a tower does not take pictures of the size of a view.
    """
    return {key: _view(recipe, key, name, towers[name]) for key, name in input_keys.items()}


def build_masks(recipe: Recipe, views: Mapping[str, View], towers: Towers) -> dict[str, ViewMask]:
    """The mask of each view that a tower reads, by the view's name.

    Args:
        views: what `build_views` gave.

    Raises:
        RecipeError: a mask does not fit the grid of a tower, or two towers have different grids.
    """
    assert recipe.data is not None
    masks: dict[str, ViewMask] = {}
    for name in dict.fromkeys(address.input for address in addresses(recipe)):
        spec = view_spec(recipe.data, name)
        if spec.mask is None or name in text_names(recipe.data):
            continue
        readers = {
            address.tower: _original(towers[address.tower])
            for address in addresses(recipe)
            if address.input == name and _original(towers[address.tower]).reads_hidden
        }
        view = views.get(_key(recipe, next(iter(readers)), name)) if readers else None
        if isinstance(view, ImageView):
            masks[name] = ViewMask(_mask(recipe, name, spec, readers), view.pictures)
    return masks


def view_spec(data: DataSpec, name: str, usual: str = USUAL) -> ViewSpec:
    """The section of a view; one that is null has the augmentation of the main view, without its
    copies and mask.

    Args:
        usual: the augmentation where none is named.
    """
    own = data.augment if name == MAIN_VIEW else data.views.get(name)
    if own is not None:
        return own
    base = data.augment or ViewSpec(name=usual)
    return base.model_copy(update={"copies": 1, "mask": None})


def build_augment(
    recipe: Recipe, view: str = MAIN_VIEW, usual: str = USUAL
) -> Augment | CloudAugment | None:
    """The augmentation of a view of the training samples, or None where it is switched off."""
    assert recipe.data is not None
    spec = view_spec(recipe.data, view, usual)
    return None if spec.name == "none" else make("augment", spec.name, spec.keys)


def addresses(recipe: Recipe, tower: str | None = None) -> list[Address]:
    """Everything that the distillers read, in steps and episodes; of one tower and its followers,
    or of all."""
    found: dict[Address, None] = {}
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        found |= dict.fromkeys((*arrow.addresses(), *arrow.episode_addresses()))
    return [
        address
        for address in found
        if tower in (None, address.tower, recipe.towers[address.tower].follows)
    ]


def is_required(recipe: Recipe, text: str) -> bool:
    """Whether a sample without a text is broken: it is more than a negative to some distiller."""
    arrows = [arrow_of(recipe, spec) for spec in recipe.distillers]
    return any(
        address.input == text
        for arrow in arrows
        for address in (*arrow.sides(), *arrow.episode_addresses())
    )


def _original(tower: Tower | MomentumTower) -> Tower:
    return tower.tower if isinstance(tower, MomentumTower) else tower


def _key(recipe: Recipe, tower: str, view: str) -> str:
    name = recipe.towers[tower].follows or tower
    return Address(name, input=view).input_key


def _view(recipe: Recipe, key: str, name: str, tower: Tower | MomentumTower) -> View:
    assert recipe.data is not None
    original, view = _original(tower), key.partition("@")[2] or MAIN_VIEW
    modality, expected = MODALITIES[original.modality], original.input
    if view in text_names(recipe.data):
        built = modality.view(expected, None, view)
        if isinstance(built, TextView):
            built.required = is_required(recipe, view)
        return built
    usual = FACTS[original.modality].augment
    spec = view_spec(recipe.data, view, usual)
    if isinstance(expected, ImageInput) and spec.size_px is not None:
        expected = expected.at_size(spec.size_px)
    built = modality.view(expected, build_augment(recipe, view, usual), None, copies=spec.copies)
    if isinstance(built, ImageView) and built.size_px != original.input.size_px:
        try:
            original.encoder.grid(built.size_px)
        except RecipeError as error:
            where = _where(view)
            raise RecipeError(
                f"{where}: tower '{name}': {error}. Change {where}.size_px."
            ) from error
    return built


def _where(view: str) -> str:
    return "data.augment" if view == MAIN_VIEW else f"data.views.{view}"


def _mask(recipe: Recipe, view: str, spec: ViewSpec, readers: Mapping[str, Tower]) -> Mask:
    assert spec.mask is not None
    where = f"{_where(view)}.mask"
    grids = {name: _grid(where, name, tower, spec) for name, tower in readers.items()}
    masking = next((name for name, tower in readers.items() if tower.masks != "none"), None)
    first = masking or next(iter(grids))
    for name, grid in grids.items():
        if grid[:2] != grids[first][:2]:
            raise RecipeError(
                f"{where}: tower '{first}' has {grids[first].rows} x {grids[first].columns}"
                f" positions and tower '{name}' {grid.rows} x {grid.columns}, and one mask cannot"
                " serve both. Give them images or patches of other sizes, or views of their own."
            )
    try:
        mask: Mask = make("mask", spec.mask.name, spec.mask.keys, grids[first])
    except ValueError as error:
        raise RecipeError(f"{where}: {error}.") from error
    count, places = int(mask(random.Random(0)).sum()), grids[first].num_places
    if is_fixed(mask) and count in (0, places):
        raise RecipeError(
            f"{where}: hides {count} of {places} positions, so that there is nothing to"
            f" {'see' if count else 'predict'}. Hide {'fewer' if count else 'more'}."
        )
    for name, tower in readers.items():
        if tower.masks in ("drop", "complement") and not is_fixed(mask):
            keys = ", ".join(mask.varies_with)
            raise RecipeError(
                f"towers.{name}.masks: {tower.masks} needs as many hidden positions in every"
                f" picture, and with {keys} of {where} their number varies. Use masks: replace, or"
                f" remove {keys}."
            )
    return mask


def _grid(where: str, name: str, tower: Tower, spec: ViewSpec) -> Grid:
    size: tuple[int, int] = tower.input.size_px
    grid = tower.encoder.grid(size if spec.size_px is None else (spec.size_px, spec.size_px))
    if grid is None:
        raise RecipeError(
            f"{where}: tower '{name}' has no grid of positions that could be hidden. Remove the"
            " mask."
        )
    return grid
