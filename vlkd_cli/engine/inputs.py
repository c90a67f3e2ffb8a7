"""What a training step reads: which towers run, which read stored features, and the loader that
serves both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import View
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.data.views import FeatureView
from vlkd_cli.distributed import runtime
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.features.training_cache import Stored, store_features
from vlkd_cli.recipe.address import MAIN_VIEW, arrow_of, text_names
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.tower import Tower

Towers = dict[str, Tower | MomentumTower]


@dataclass
class Inputs:
    """The towers as training runs them, and the stored features of those that are not run."""

    reader: Reader | StreamReader
    towers: Towers
    stored: dict[str, Stored]


def prepare_inputs(
    recipe: Recipe, reader: Reader | StreamReader, towers: Towers, device: torch.device
) -> Inputs:
    """Store the features of towers whose input never changes, where the recipe asks for it or it
    saves work.

    Raises:
        RecipeError: the recipe asks for it and it cannot be.
    """
    assert recipe.data is not None
    inputs = Inputs(reader, dict(towers), {})
    for name, tower in towers.items():
        if isinstance(tower, Tower) and _reads_stored(recipe, reader, name, tower):
            assert isinstance(reader, Reader)
            inputs.stored[name] = store_features(
                tower,
                reader,
                cache_folder(recipe.train.cache_dir),
                device=device,
                precision=recipe.train.precision,
                batch_size=recipe.train.batch_size,
                workers=recipe.data.workers,
            )
            inputs.towers[name] = tower.cached()
    for name, tower in towers.items():
        # A follower reads what the followed tower reads.
        if isinstance(tower, MomentumTower) and tower.follows in inputs.stored:
            inputs.towers[name] = tower.cached()
    return inputs


def build_loader(
    recipe: Recipe, keys: Mapping[str, str], inputs: Inputs, towers: Towers, device: torch.device
) -> Loader:
    """The loader of what a step reads.

    Args:
        keys: of `Batch.inputs`, and the tower whose input each is.
    """
    data, settings = recipe.data, recipe.train
    assert data is not None
    views = build_views(
        recipe, {key: name for key, name in keys.items() if name not in inputs.stored}, towers
    )
    for key, name in keys.items():
        if name in inputs.stored:
            views[key] = FeatureView(
                inputs.stored[name].path,
                MODALITIES[towers[name].modality].table,
            )
    loader = Loader(
        inputs.reader,
        views,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=data.workers,
        prefetch=data.prefetch,
        shuffle=data.shuffle,
        episode_samples=data.episode_samples,
        per_class=data.per_class,
        max_broken_share=data.max_broken_share,
        pin_memory=device.type == "cuda",
        broken={
            row: skipped
            for stored in inputs.stored.values()
            for row, skipped in stored.broken.items()
        },
    )
    if loader.batches_per_epoch < settings.accumulate:
        needed = settings.batch_size * settings.accumulate * runtime.world_size()
        raise DataError(
            f"the data gives {loader.batches_per_epoch} batches per epoch on each process, fewer"
            f" than one step needs ({needed} samples over all processes). Lower train.batch_size or"
            " train.accumulate."
        )
    return loader


def build_views(
    recipe: Recipe, input_keys: dict[str, str], towers: dict[str, Tower | MomentumTower]
) -> dict[str, View]:
    """What the loader prepares for each tower and view that a step reads."""
    assert recipe.data is not None
    return {key: _view(recipe, key, towers[tower]) for key, tower in input_keys.items()}


def _view(recipe: Recipe, key: str, tower: Tower | MomentumTower) -> View:
    assert recipe.data is not None
    original = tower.tower if isinstance(tower, MomentumTower) else tower
    name = key.partition("@")[2] or MAIN_VIEW
    text = name if name in text_names(recipe.data) else None
    augment = None if text is not None else build_augment(recipe, name)
    return MODALITIES[original.modality].view(original.input, augment, text)


def build_augment(recipe: Recipe, view: str = MAIN_VIEW) -> Any:
    """The augmentation of a view of the training images, or None where it is switched off."""
    assert recipe.data is not None
    component = recipe.data.views.get(view) or recipe.data.augment
    if component is None:
        return make("augment", "standard", {})
    return None if component.name == "none" else make("augment", component.name, component.keys)


def _reads_stored(recipe: Recipe, reader: Reader | StreamReader, name: str, tower: Tower) -> bool:
    asked = recipe.towers[name].cache
    obstacle = _obstacle(recipe, reader, name, tower)
    if asked and obstacle:
        raise RecipeError(f"towers.{name}.cache: the features cannot be computed once: {obstacle}.")
    if asked is not None or obstacle:
        return bool(asked)
    assert isinstance(reader, Reader) and recipe.data is not None
    rows = MODALITIES[tower.modality].rows(reader)
    # Worth it only where the run would otherwise encode more than there is to encode.
    return rows <= (recipe.data.episode_samples or len(reader)) * recipe.train.epochs


def _obstacle(recipe: Recipe, reader: Reader | StreamReader, name: str, tower: Tower) -> str | None:
    if not tower.cacheable:
        return "its backbone or pooler learns"
    if not isinstance(reader, Reader):
        return "its data is a stream, which has no rows to store"
    if tower.modality == "image" and any(
        build_augment(recipe, view) is not None for view in _views_of(recipe, name)
    ):
        return (
            "its images are augmented at random, so its features change from epoch to epoch; set"
            " data.augment: {name: none}"
        )
    return None


def _views_of(recipe: Recipe, name: str) -> set[str]:
    """The views of the samples that a tower sees."""
    arrows = [arrow_of(recipe, spec) for spec in recipe.distillers]
    return {
        address.input
        for arrow in arrows
        for address in (*arrow.addresses(), *arrow.episode_addresses())
        if address.tower == name
    }
