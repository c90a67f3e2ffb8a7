"""What a training step reads: which towers run, which read cached features, and the loader that
serves both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import View
from vlkd_cli.data.fixed_length import FixedLength, longest_text
from vlkd_cli.data.keys import caption_keys as keys_of_all_captions
from vlkd_cli.data.keys import column_grades, column_keys
from vlkd_cli.data.loading.draws import Draws
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.data.views import (
    CAPTION_KEYS,
    FeatureView,
    KeyView,
    TextView,
    keys_of_captions,
    keys_of_text,
)
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.draws import draws_of, open_tables, show_draws, stored_outputs
from vlkd_cli.engine.views import (
    addresses,
    build_augment,
    build_masks,
    build_views,
    is_required,
    view_spec,
)
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.features.draw_tables import DrawTables
from vlkd_cli.features.training_cache import Stored, store_features
from vlkd_cli.recipe.address import LAYER, MAIN_VIEW, POOLED, pictures_of, text_names
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.outputs import BACKBONE, INPUT, TOKENS
from vlkd_cli.towers.storing import StoringTower
from vlkd_cli.towers.tower import Tower

Towers = dict[str, Tower | MomentumTower]


@dataclass
class Inputs:
    """The towers as training runs them, and the cached features of those that are not run.

    Args:
        stored: features that are complete, by tower.
        tables: features under random augmentation that fill up during training, by tower.
        draws: the augmentations; None where no tower has `cache: {draws: K}`.
        padded: towers of texts that are padded to one length, with their tokenizers.
    """

    reader: Reader | StreamReader
    towers: Towers
    stored: dict[str, Stored] = field(default_factory=dict)
    tables: dict[str, DrawTables] = field(default_factory=dict)
    draws: Draws | None = None
    padded: dict[str, FixedLength] = field(default_factory=dict)


def prepare_inputs(
    recipe: Recipe,
    reader: Reader | StreamReader,
    towers: Towers,
    device: torch.device,
    folder: Path,
) -> Inputs:
    """Store the features of towers whose input never changes, where the recipe asks for it or it
    saves work.

    Args:
        folder: where they are stored.

    Raises:
        RecipeError: the recipe asks for it and it cannot be.
    """
    assert recipe.data is not None
    inputs = Inputs(reader, dict(towers), draws=draws_of(recipe))
    for name, tower in towers.items():
        if not isinstance(tower, Tower):
            continue
        spec = recipe.towers[name].draws
        if spec is not None and FACTS[tower.modality].has_views:
            if obstacle := _not_fixed(recipe, reader, name, tower):
                raise RecipeError(f"towers.{name}.cache: features cannot be stored: {obstacle}.")
            assert isinstance(reader, Reader) and inputs.draws is not None
            tables = open_tables(recipe, reader, inputs.draws, tower, folder)
            if tables is not None:
                inputs.tables[name] = tables
            inputs.towers[name] = StoringTower(
                tower,
                tables.store if tables else None,
                stored_outputs(recipe, tower) or (BACKBONE,),
                spec.dtype,
            )
        elif spec is not None and not spec.store:
            assert isinstance(reader, Reader)
            inputs.padded[name] = FixedLength(tower.input, longest_text(reader, tower.input))
        elif _reads_stored(recipe, reader, name, tower):
            assert isinstance(reader, Reader)
            inputs.stored[name] = store_features(
                tower,
                reader,
                folder,
                device=device,
                precision=recipe.train.precision,
                batch_size=recipe.train.batch_size,
                workers=recipe.data.workers,
                alike=spec is not None,
                dtype="float32" if spec is None else spec.dtype,
            )
            inputs.towers[name] = tower.cached()
    for name, tower in towers.items():
        # A follower reads what the followed tower reads.
        if isinstance(tower, MomentumTower) and tower.follows in inputs.stored:
            inputs.towers[name] = tower.cached()
    return inputs


def build_loader(
    recipe: Recipe,
    composition: Composition,
    inputs: Inputs,
    towers: Towers,
    device: torch.device,
    *,
    episode: bool = False,
    stream_parts: int | None = None,
) -> Loader:
    """The loader of what a step of the composition reads, or the start of an episode."""
    data, settings, keys = recipe.data, recipe.train, composition.input_keys(episode)
    assert data is not None
    views = build_views(
        recipe, {key: name for key, name in keys.items() if name not in inputs.stored}, towers
    )
    storing = [name for name, one in inputs.towers.items() if isinstance(one, StoringTower)]
    show_draws(views, keys, storing, inputs.tables)
    for key, name in keys.items():
        view = views.get(key)
        if name in inputs.padded and isinstance(view, TextView):
            view.tokenize = inputs.padded[name]
    for key, name in keys.items():
        if name in inputs.stored:
            text = key.partition("@")[2]
            views[key] = FeatureView(
                inputs.stored[name].path,
                FACTS[towers[name].modality].table,
                text if text in text_names(data) else MAIN_VIEW,
                required=text not in text_names(data) or is_required(recipe, text),
            )
    if composition.reads_caption_keys and not episode:
        views[CAPTION_KEYS] = _view_of_captions(inputs.reader, views)
        for name in composition.negative_texts:
            text = name if name in text_names(data) else MAIN_VIEW
            views[keys_of_text(name)] = TextView(keys_of_captions, text, required=False)
    loader = Loader(
        inputs.reader,
        views,
        masks=build_masks(recipe, views, towers),
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=data.workers,
        prefetch=data.prefetch,
        shuffle=data.shuffle,
        episode_samples=data.episode_samples,
        per_class=data.per_class,
        distinct=data.distinct,
        columns=None if episode else _columns(inputs.reader, composition.columns),
        max_broken_share=data.max_broken_share,
        stream_parts=stream_parts,
        pin_memory=device.type == "cuda",
        broken={
            row: skipped
            for stored in inputs.stored.values()
            for row, skipped in stored.broken.items()
        },
        draws=inputs.draws,
    )
    if loader.batches_per_epoch < settings.accumulate:
        needed = settings.batch_size * settings.accumulate * runtime.world_size()
        raise DataError(
            f"the data gives {loader.batches_per_epoch} batches per epoch on each process, fewer"
            f" than one step needs ({needed} samples over all processes). Lower train.batch_size or"
            " train.accumulate."
        )
    return loader


def _view_of_captions(reader: Reader | StreamReader, views: Mapping[str, View]) -> View:
    """Keys of captions: out of a table where all else is read from tables too."""
    if isinstance(reader, Reader) and all(isinstance(view, FeatureView) for view in views.values()):
        return KeyView(keys_of_all_captions(reader))
    return TextView(keys_of_captions)


def _columns(
    reader: Reader | StreamReader, columns: Mapping[str, str]
) -> dict[str, np.ndarray] | None:
    if not columns:
        return None
    if not isinstance(reader, Reader):
        raise DataError(
            f"column '{next(iter(columns))}' is read by a distiller, but the data is a stream,"
            " which has no columns. Read it with random access."
        )
    read = {"key": column_keys, "grade": column_grades}
    return {name: read[kind](reader, name) for name, kind in columns.items()}


def _reads_stored(recipe: Recipe, reader: Reader | StreamReader, name: str, tower: Tower) -> bool:
    asked = recipe.towers[name].cache
    obstacle = _obstacle(recipe, reader, name, tower)
    if asked and obstacle:
        raise RecipeError(f"towers.{name}.cache: the features cannot be computed once: {obstacle}.")
    if asked is not None or obstacle:
        return bool(asked)
    assert isinstance(reader, Reader) and recipe.data is not None
    rows = len(MODALITIES[tower.modality].rows(reader, range(len(reader))))
    # Worth it only where the run would otherwise encode more than there is to encode.
    return rows <= (recipe.data.episode_samples or len(reader)) * recipe.train.epochs


def _not_fixed(
    recipe: Recipe, reader: Reader | StreamReader, name: str, tower: Tower
) -> str | None:
    """Why a tower's features of a given input could change, or be more than a row."""
    if not tower.cacheable:
        return "its backbone or pooler is trained"
    if not isinstance(reader, Reader):
        return "its data is a stream, which has no rows to cache"
    read = addresses(recipe, name)
    outputs = tower.graph.closure({address.output for address in read})
    needed = {name for name in outputs if name in (INPUT, TOKENS) or LAYER.fullmatch(name)}
    if recipe.towers[name].draws is not None and FACTS[tower.modality].has_views:
        needed = {output for output in needed if not output.endswith(POOLED)}
    if needed:
        return f"'{min(needed)}' is read from it, and only features are cached"
    return None


def _obstacle(recipe: Recipe, reader: Reader | StreamReader, name: str, tower: Tower) -> str | None:
    if obstacle := _not_fixed(recipe, reader, name, tower):
        return obstacle
    read = addresses(recipe, name)
    if not FACTS[tower.modality].has_views:
        return None
    views = {address.input for address in read}
    if any(
        build_augment(recipe, view, FACTS[tower.modality].augment) is not None for view in views
    ):
        return (
            f"its {FACTS[tower.modality].plural} are augmented at random, so its features change"
            " from epoch to epoch; set data.augment: {name: none}"
        )
    assert recipe.data is not None
    for view in views:
        spec = view_spec(recipe.data, view)
        if spec.mask is not None and tower.reads_hidden:
            return f"view '{view}' has a mask"
        if pictures_of(recipe.data, view) > 1:
            return f"view '{view}' has several pictures"
        if spec.size_px is not None:
            return f"view '{view}' has its own size"
    return None
