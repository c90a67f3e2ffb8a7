"""A finished run that is trained for longer: whether its recipe allows it, and where it
continues."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vlkd_cli import console
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.errors import CheckpointError
from vlkd_cli.recipe.load import load_unchecked
from vlkd_cli.recipe.messages import written
from vlkd_cli.recipe.schedules import OPEN_ENDED, has_cooldown, schedules_of
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.reports.records import BEFORE_EXTENSION
from vlkd_cli.reports.state import StateFile, read_state

LENGTHS = ("epochs", "steps")
"""The keys of `train` that set the length of a run."""


def is_extension(before: Recipe, now: Recipe) -> bool:
    """Whether the run is to become longer, or at least not shorter in any way."""
    old, new = ([length or float("inf") for length in _lengths(each)] for each in (before, now))
    return old != new and all(a <= b for a, b in zip(old, new, strict=True))


def refuse_extension(before: Recipe, now: Recipe, folder: RunFolder) -> None:
    """A run becomes longer only where nothing that it did so far depended on its length.

    Raises:
        CheckpointError: something did, or what was raised is not what ends the run; names the way
            out.
    """
    total = getattr(read_state(folder.path), "total_steps", None)
    if total is not None and total == now.train.steps:
        raise CheckpointError(
            f"train.epochs: {now.train.epochs} has no effect: train.steps: {now.train.steps} ends"
            " the run. Raise it instead."
        )
    if now.train.epochs == before.train.epochs and total is not None:
        if total != before.train.steps:
            raise CheckpointError(
                f"train.steps has no effect: train.epochs: {now.train.epochs} ends the run at step"
                f" {total:,}. Raise it instead."
            )
    for path, spec in schedules_of(before):
        if spec.name not in OPEN_ENDED:
            at = "its end" if total is None else f"step {total:,}"
            raise CheckpointError(
                f"{written(path)}: the {spec.name} of this run ends at {at}. Start from its weights"
                f" ({_weights(before, folder)}), or choose schedule wsd."
            )
    for path in _over_the_run(before.model_dump(mode="json"), ()):
        raise CheckpointError(
            f"{written(path)}: goes from its first value to its last over the whole run, so a"
            f" longer run has other values from the first step on. Start from its weights"
            f" ({_weights(before, folder)}), or give such numbers `epochs` or `steps`."
        )


def extend(folder: RunFolder, before: Recipe, recipe: Recipe) -> None:
    """Turn a run, finished or not, into one of the longer recipe that is stopped before its
    cooldown; without a cooldown, where it is.

    Later checkpoints and results move to `before_extension-N/` folders. A kill at any moment leaves
    a run that the same command extends.

    Raises:
        CheckpointError: the checkpoint from before the cooldown is missing.
    """
    from vlkd_cli.checkpoint import BEFORE_COOLDOWN, Checkpoint, point, resolve

    last = Checkpoint.load(resolve(folder.path, "last"))
    start, first = last, folder.checkpoints / BEFORE_COOLDOWN
    if any(has_cooldown(spec) for _, spec in schedules_of(recipe)):
        found = Checkpoint.load(first) if first.is_file() else None
        if found is not None and _lengths(json.loads(found.recipe)) == _lengths(before):
            start = found
        elif getattr(read_state(folder.path), "state", None) == "finished":
            raise CheckpointError(
                f"{first} is missing: it holds the weights from before the cooldown, where a longer"
                f" run continues. Start from this run's weights ({_weights(recipe, folder)})."
            )
    if start.step < last.step:
        _move_later(folder, start.step)
        point(folder.checkpoints / "last.pt", first)
    folder.rewrite_recipe(recipe)
    console.say(f"Extending {folder.path} from step {start.step:,}.")


def wait_for_extension(folder: RunFolder, recipe: Recipe) -> None:
    """Wait until the first process of the job has extended the run; the recipe is its last word.

    Raises:
        CheckpointError: it takes longer than five minutes.
    """
    end = time.monotonic() + 300
    while _lengths(load_unchecked(folder.recipe)) != _lengths(recipe):
        if time.monotonic() > end:
            raise CheckpointError(
                f"{folder.recipe} was not extended by the first process within five minutes. See"
                " what it reports, then start again."
            )
        time.sleep(0.5)


def _lengths(recipe: Recipe | dict[str, dict[str, int | None]]) -> list[int | None]:
    train = recipe["train"] if isinstance(recipe, dict) else recipe.train.model_dump()
    return [train[key] for key in LENGTHS]


def _move_later(folder: RunFolder, step: int) -> None:
    """Put aside what came after this step: results, and checkpoints, the best one among them."""
    from vlkd_cli.checkpoint import Checkpoint
    from vlkd_cli.checkpoint_shards import step_of

    results = [path for path in folder.results.glob("step_*") if _number(path) > step]
    checkpoints = [path for path in folder.checkpoints.glob("step_*.pt") if step_of(path) > step]
    best = folder.checkpoints / "best.pt"
    if best.is_file() and Checkpoint.load(best).step > step:
        checkpoints.append(best)
        StateFile(folder.path).forget_best()
    for base, paths in ((folder.results, results), (folder.checkpoints, checkpoints)):
        if not paths:
            continue
        target = _fresh(base)
        for path in paths:
            shutil.move(path, target / path.name)


def _fresh(base: Path) -> Path:
    number = 1
    while (target := base / f"{BEFORE_EXTENSION}-{number}").exists():
        number += 1
    target.mkdir()
    return target


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _weights(recipe: Recipe, folder: RunFolder) -> str:
    """How a new recipe takes the trained towers."""
    trained = [
        name
        for name, tower in recipe.towers.items()
        if tower.train != "none" and tower.follows is None
    ]
    return f"towers.{trained[0] if trained else 'image'}: {{run: {folder.path}}}"


def _over_the_run(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Paths of the numbers that change over the whole run."""
    if isinstance(value, dict):
        ends = value.get("linear") or value.get("cosine")
        is_schedule = isinstance(ends, list) and len(ends) == 2
        if is_schedule and not (value.get("epochs") or value.get("steps")):
            yield path
            return
        for key, item in value.items():
            yield from _over_the_run(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _over_the_run(item, (*path, number))
