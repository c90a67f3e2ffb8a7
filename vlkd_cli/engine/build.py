"""A recipe made live: towers, objectives, data. Shared by training and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vlkd_cli import console
from vlkd_cli.composition.composition import Composition, Objective
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.batch import Broken, View
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.address import MAIN_VIEW, Address, arrow_of
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.objectives import check_widths
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.tower import Tower


def build_towers(
    recipe: Recipe,
    *,
    captions: Callable[[], Iterable[str]] | None,
    run_folder: Path | None,
    cache_dir: Path | None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, Tower | MomentumTower]:
    """Every tower of the recipe, with the same initial weights on every rank.

    Args:
        captions: for a tokenizer that is trained on them; None where weights of a checkpoint
            follow, whose `files` hold the tokenizer.
    """
    towers: dict[str, Tower | MomentumTower] = {}
    for name, spec in sorted(recipe.towers.items(), key=lambda item: item[1].follows is not None):
        seed_everything(recipe.train.seed, "weights", name)
        if spec.follows is not None:
            followed = towers[spec.follows]
            assert isinstance(followed, Tower)
            towers[name] = MomentumTower(followed, follows=spec.follows, momentum=spec.momentum)
            continue
        # Every rank builds at once: libraries lock what they download, and a tokenizer is trained
        # by the first rank and broadcast.
        towers[name] = assemble(
            name,
            spec,
            captions=captions,
            cache_dir=cache_dir,
            run_folder=run_folder,
            files=files,
            peers={n: t for n, t in towers.items() if isinstance(t, Tower)},
        )
    return {name: towers[name] for name in recipe.towers}


def made_files(towers: Iterable[Tower | MomentumTower]) -> dict[str, bytes]:
    """What the towers need beside their weights to be built again, by path in the run folder."""
    return {
        path: content
        for tower in towers
        if isinstance(tower, Tower)
        for path, content in tower.encoder.files.items()
    }


def say_sources(towers: Iterable[Tower]) -> None:
    """Print which checkpoint each tower out of a run was taken from."""
    for tower in towers:
        if tower.source is not None:
            console.say(f"Tower '{tower.name}': {tower.source}")


def build_objectives(recipe: Recipe) -> list[Objective]:
    """The distillers with the arrows between what they compare; a name used twice gets a number."""
    objectives: list[Objective] = []
    seed_everything(recipe.train.seed, "distillers")
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        base = spec.name.split(":")[-1]
        taken = {objective.name for objective in objectives}
        name = next(
            n
            for n in [base, *(f"{base}_{k}" for k in range(2, len(recipe.distillers) + 2))]
            if n not in taken
        )
        objectives.append(
            Objective(name, make("distiller", spec.name, spec.keys), arrow, spec.weight)
        )
    return objectives


def build_composition(
    recipe: Recipe,
    towers: dict[str, Tower | MomentumTower],
    *,
    steps_per_epoch: int,
    total_steps: int,
    num_rows: int | None = None,
) -> Composition:
    """The towers wired by the recipe's distillers."""
    objectives = build_objectives(recipe)
    _check_widths(recipe, objectives, towers)
    return Composition(
        towers,
        objectives,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        num_rows=num_rows,
    )


def _check_widths(
    recipe: Recipe, objectives: list[Objective], towers: dict[str, Tower | MomentumTower]
) -> None:
    """Refuse outputs that a distiller compares directly though their widths differ."""

    def width_of(address: Address) -> int:
        tower = towers[address.tower]
        return tower.feature_width if address.output == "backbone" else tower.width

    problems = [
        problem
        for number, (spec, objective) in enumerate(zip(recipe.distillers, objectives, strict=True))
        for problem in check_widths(recipe, spec, objective.arrow, ("distillers", number), width_of)
    ]
    if problems:
        raise RecipeError(report({}, problems, "the recipe"))


def build_views(
    recipe: Recipe, input_keys: dict[str, str], towers: dict[str, Tower | MomentumTower]
) -> dict[str, View]:
    """What the loader prepares for each tower and view that a step reads."""
    assert recipe.data is not None
    return {key: _view(recipe, key, towers[tower]) for key, tower in input_keys.items()}


def captions_of(reader: Reader | StreamReader) -> Callable[[], Iterable[str]] | None:
    """All captions of the data, one after another; for training a tokenizer. Samples without any
    are the loader's to count."""
    if not isinstance(reader, Reader):
        return None

    def captions() -> Iterator[str]:
        for index in range(len(reader)):
            with contextlib.suppress(Broken):
                yield from reader.captions(index)

    return captions


def _view(recipe: Recipe, key: str, tower: Tower | MomentumTower) -> View:
    assert recipe.data is not None
    original = tower.tower if isinstance(tower, MomentumTower) else tower
    if original.modality == "text":
        return TextView(original.tokenize)
    assert original.image_input is not None
    name = key.partition("@")[2] or MAIN_VIEW
    return ImageView(original.image_input, build_augment(recipe, name))


def build_augment(recipe: Recipe, view: str = MAIN_VIEW) -> Any:
    """The augmentation of a view of the training images, or None where it is switched off."""
    assert recipe.data is not None
    component = recipe.data.views.get(view) or recipe.data.augment
    if component is None:
        return make("augment", "standard", {})
    return None if component.name == "none" else make("augment", component.name, component.keys)
