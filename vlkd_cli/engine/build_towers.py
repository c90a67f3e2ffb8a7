"""The towers of a recipe, with the same initial weights on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from vlkd_cli import console
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.engine.determinism import seed_everything
from vlkd_cli.engine.inputs import Towers
from vlkd_cli.recipe.address import arrow_of
from vlkd_cli.recipe.schema import InitSpec, Recipe, TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.inherit import inherit
from vlkd_cli.towers.outputs import HEAD
from vlkd_cli.towers.tower import Tower


def build_towers(
    recipe: Recipe,
    *,
    captions: Callable[[], Iterable[str]] | None,
    run_folder: Path | None,
    cache_dir: Path | None,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> Towers:
    """Every tower of the recipe, with the same initial weights on every rank.

    Args:
        captions: for a tokenizer that is trained on them; None where weights of a checkpoint
            follow, whose `files` hold the tokenizer.
    """
    towers: Towers = {}
    outputs = outputs_read(recipe)
    for name, spec in sorted(recipe.towers.items(), key=_comes_late):
        # A copy of another tower starts from that tower's random weights.
        seed_everything(recipe.train.seed, "weights", spec.like if spec.like in towers else name)
        if spec.follows is not None:
            followed = towers[spec.follows]
            assert isinstance(followed, Tower)
            towers[name] = MomentumTower(
                followed,
                follows=spec.follows,
                momentum=spec.momentum,
                name=name,
                outputs=outputs[name],
                masks=spec.masks,
                shuffle=spec.shuffle,
                seed=recipe.train.seed,
            )
            continue
        # Every rank builds at once: libraries lock what they download, and a tokenizer is trained
        # by the first rank and broadcast.
        towers[name] = assemble(
            name,
            spec,
            outputs=outputs[name],
            captions=captions,
            cache_dir=cache_dir,
            run_folder=run_folder,
            files=files,
        )
        if spec.init is not None and spec.init.from_ in towers:
            _inherit(towers[name], towers[spec.init.from_], spec.init)
    return {name: towers[name] for name in recipe.towers}


def _inherit(student: Tower | MomentumTower, source: Tower | MomentumTower, init: InitSpec) -> None:
    assert isinstance(student, Tower) and isinstance(source, Tower)
    student.inherited = inherit(
        student.encoder, source.encoder, init.layers, init.from_, student.name
    )


def _comes_late(item: tuple[str, TowerSpec]) -> tuple[bool, bool, bool]:
    """Followers, copies and students come after the towers that they follow, copy or inherit
    from."""
    spec = item[1]
    return spec.follows is not None, spec.init is not None, spec.like is not None


def outputs_read(recipe: Recipe) -> dict[str, set[str]]:
    """What a recipe's distillers and evaluations read of each tower; a follower's outputs are read
    of the followed tower's heads as well."""
    read: dict[str, set[str]] = {name: set() for name in recipe.towers}
    for spec in recipe.distillers:
        arrow = arrow_of(recipe, spec)
        for address in (*arrow.addresses(), *arrow.episode_addresses()):
            read[address.tower].add(address.output)
    for entry in recipe.evals:
        if entry.tower in read:
            read[entry.tower].add(HEAD)
    for name, tower in recipe.towers.items():
        if tower.follows is not None:
            read[tower.follows] |= read[name]
    return read


def made_files(towers: Iterable[Tower | MomentumTower]) -> dict[str, bytes]:
    """What the towers need in addition to their weights to be built again, by path in the run
    folder."""
    return {
        path: content
        for tower in towers
        if isinstance(tower, Tower)
        for path, content in tower.encoder.files.items()
    }


def say_sources(towers: Iterable[Tower]) -> None:
    """Print which checkpoint each tower out of a run was taken from, and what others inherit."""
    for tower in towers:
        if tower.source is not None:
            console.say(f"Tower '{tower.name}': {tower.source}")
        if tower.inherited is not None:
            console.say(f"Tower '{tower.name}' {tower.inherited}.")
