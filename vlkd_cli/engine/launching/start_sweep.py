"""From the words of `vlkd sweep` to its runs: every cell is checked before the first one starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from vlkd_cli import console
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.engine.launching.launch import quieten_libraries
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.engine.launching.sweep_cells import SEED, SweepCell, sweep_cells
from vlkd_cli.engine.launching.sweep_jobs import Outcome, run_jobs
from vlkd_cli.errors import CheckpointError, RecipeError, UserError
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.overrides import parse_path
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json
from vlkd_cli.reports.state import read_state

FILE = "sweep.json"
FAILED_CELLS = 1
"""Exit code where a cell failed."""
_SAME_SHAPE = {
    "optimizer": None,
    "schedule": None,
    "evals": None,
    "reports": None,
}
"""Sections that change no shape; `train` is compared by what does."""


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What `vlkd sweep` was asked for; `commands/sweep.py` explains each option."""

    recipe: str
    grids: Sequence[str] = ()
    draws: Sequence[str] = ()
    num_random: int = 0
    search_seed: int = 0
    seeds: Sequence[int] = ()
    overrides: Sequence[str] = ()
    folder: Path | None = None
    runs: Path = Path("runs")
    jobs: int = 1
    gpus_per_job: int = 1
    index: int | None = None
    only_list: bool = False
    dry_run: bool = False

    @property
    def root(self) -> Path:
        """The folder of the sweep."""
        return self.folder or self.runs / f"{Path(self.recipe).stem}-sweep"


def start_sweep(request: SweepRequest) -> int:
    """Run the cells that are not finished.

    Returns:
        0, 1 where cells failed, or 128 and the number of the signal that stopped it.
    """
    quieten_libraries()
    base = load_recipe(request.recipe, request.overrides)
    cells = sweep_cells(
        request.grids,
        request.draws,
        num_random=request.num_random,
        search_seed=request.search_seed,
        seeds=request.seeds or (base.train.seed,),
    )
    _refuse_idle_settings(request, cells[0])
    if request.index is not None and not 0 <= request.index < len(cells):
        raise UserError(
            f"--index {request.index}: the sweep has cells 0 to {len(cells) - 1}. With SLURM:"
            f" --array=0-{len(cells) - 1}."
        )
    recipes = _checked(request, cells)
    if (request.only_list or request.dry_run) and (request.root / FILE).is_file():
        _is_longer(request.root / FILE, _read(request.root / FILE), _content(request, base, cells))
    if request.only_list:
        _print_list(request.root, cells)
        return 0
    if request.dry_run:
        return _dry_run(request, cells, recipes)
    _record(request, base, cells)
    if request.index is not None:
        return _train_here(request, cells[request.index])
    outcome = run_jobs(
        [_command(request, cell) for cell in cells],
        request.root,
        [cell.folder for cell in cells],
        shared=[_cache_key(recipe) for recipe in recipes],
        jobs=request.jobs,
        gpus_per_job=request.gpus_per_job,
    )
    return _report(request, cells, outcome)


def _refuse_idle_settings(request: SweepRequest, cell: SweepCell) -> None:
    """Settings of every cell that each cell replaces."""
    varied = [parse_path(each.partition("=")[0]) for each in cell.overrides]
    if not request.seeds:
        varied.pop()  # the seed is then the recipe's
    for setting in request.overrides:
        path = parse_path(setting.partition("=")[0].strip())
        if any(path[: len(own)] == own for own in varied):
            raise UserError(
                f"--set {setting}: has no effect: --grid, --draw or --seeds give each cell its own"
                " value. Leave it out."
            )


def _checked(request: SweepRequest, cells: Sequence[SweepCell]) -> list[Recipe]:
    """The recipe of every cell.

    Raises:
        RecipeError: each problem once, with the cells that have it.
        UserError: two cells are the same recipe, in other words.
    """
    problems: dict[tuple[str, str], dict[int, str]] = {}
    recipes = []
    for cell in cells:
        try:
            recipes.append(load_recipe(request.recipe, _settings(request, cell), to_train=True))
        except RecipeError as error:
            for line in str(error).splitlines():
                option, value, text = _as_typed(line, request, cell)
                problems.setdefault((option, text), {})[cell.index] = value
    if problems:
        raise RecipeError(
            "\n".join(_message(option, text, own) for (option, text), own in problems.items())
        )
    seen: dict[str, SweepCell] = {}
    for cell, recipe in zip(cells, recipes, strict=True):
        first = seen.setdefault(recipe_to_json(recipe), cell)
        if first is not cell:
            raise UserError(
                f"cells {first.index} and {cell.index} are the same recipe"
                f" ({', '.join(first.overrides)}; {', '.join(cell.overrides)}). Leave one out."
            )
    return recipes


def _as_typed(line: str, request: SweepRequest, cell: SweepCell) -> tuple[str, str, str]:
    """A problem with what a cell sets, as the option of the sweep with its key, the value and the
    rest; another one as it is."""
    for setting in cell.overrides:
        key, _, value = setting.partition("=")
        text = line.removeprefix(f"--set {setting}: ")
        if text != line:
            is_random = any(draw.partition("=")[0].strip() == key for draw in request.draws)
            option = "--seeds " if key == SEED else f"--{'draw' if is_random else 'grid'} {key}="
            return option, value, text
    return "", "", line


def _message(option: str, text: str, cells: Mapping[int, str]) -> str:
    values = set(cells.values())
    shown = f"{option}{values.pop()}" if len(values) == 1 else option.rstrip("= ")
    return f"{f'{shown}: ' if option else ''}{text} ({_named(list(cells))})"


def _settings(request: SweepRequest, cell: SweepCell) -> list[str]:
    return [*request.overrides, *cell.overrides]


def _named(indices: Sequence[int]) -> str:
    if len(indices) == 1:
        return f"cell {indices[0]}"
    shown = ", ".join(map(str, indices[:8]))
    return f"cells {shown}{', ...' if len(indices) > 8 else ''}"


def _record(request: SweepRequest, base: Recipe, cells: Sequence[SweepCell]) -> None:
    """Write `sweep.json`, or compare with the one that is there: a sweep may get more cells, and
    never other ones.

    Raises:
        CheckpointError: it is of another sweep, damaged, or cannot be written.
    """
    path, content = request.root / FILE, _content(request, base, cells)
    text = json.dumps(content, indent=2) + "\n"
    partial = path.with_name(f"{FILE}.{os.getpid()}")
    try:
        request.root.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        try:
            # Exclusively, and never half written.
            os.link(partial, path)
        except FileExistsError:
            before = _read(path)
            if _is_longer(path, before, content):
                partial.replace(path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. Choose another --folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _content(request: SweepRequest, base: Recipe, cells: Sequence[SweepCell]) -> dict[str, Any]:
    """The content of `sweep.json`."""
    return {
        "command": ["vlkd", *sys.argv[1:]],
        "recipe": request.recipe,
        "digest": hashlib.sha256(recipe_to_json(base).encode()).hexdigest(),
        "cells": [asdict(cell) for cell in cells],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = dict(read_json(path))
        TypeAdapter(list[SweepCell]).validate_python(content["cells"])
        TypeAdapter(str).validate_python(content["digest"], strict=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged. Remove it if the runs next to it are those of this sweep."
        ) from error
    return content


def _is_longer(path: Path, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether cells were appended."""
    remedy = "Choose another --folder for other words; more values may only be appended."
    if before["digest"] != now["digest"]:
        raise CheckpointError(
            f"{path}: its sweep has another recipe ({before.get('recipe')}, or other --set)."
            f" {remedy}"
        )
    for old, new in zip(before["cells"], now["cells"], strict=False):
        if (old["folder"], old["overrides"]) != (new["folder"], new["overrides"]):
            raise CheckpointError(
                f"{path}: cell {old['index']} is {' '.join(old['overrides'])}, and would become"
                f" {' '.join(new['overrides'])}. {remedy}"
            )
    if len(now["cells"]) < len(before["cells"]):
        raise CheckpointError(
            f"{path}: its sweep has {len(before['cells'])} cells, these words give"
            f" {len(now['cells'])}. {remedy}"
        )
    return len(now["cells"]) > len(before["cells"])


def _command(request: SweepRequest, cell: SweepCell) -> list[str]:
    """The words that train a cell, after `vlkd`: from its last checkpoint where it has one."""
    run = request.root / cell.folder
    words = ["train", request.recipe]
    for setting in _settings(request, cell):
        words += ["--set", setting]
    return [*words, "--resume" if (run / "recipe.yaml").is_file() else "--run", str(run)]


def _train_here(request: SweepRequest, cell: SweepCell) -> int:
    """Train one cell in this process."""
    run = request.root / cell.folder
    state = read_state(run)
    if state is not None and state.state == "finished":
        console.say(f"{cell.folder}: finished before.")
        return 0
    started = (run / "recipe.yaml").is_file()
    status = start_training(
        TrainRequest(
            recipe=request.recipe,
            overrides=_settings(request, cell),
            resume=str(run) if started else None,
            run=None if started else run,
        )
    )
    return 128 + status if status else 0


def _cache_key(recipe: Recipe) -> str | None:
    """What the cached features of frozen towers depend on; None where nothing is cached."""
    frozen = {
        name: tower.model_dump(mode="json")
        for name, tower in recipe.towers.items()
        if tower.train in ("none", "head", "prompt") and tower.cache is not False
    }
    if not frozen or recipe.data is None:
        return None
    data = recipe.data.model_dump(mode="json", exclude={"workers", "prefetch"})
    return json.dumps([frozen, data, recipe.train.cache_dir, recipe.train.precision])


def _dry_run(request: SweepRequest, cells: Sequence[SweepCell], recipes: Sequence[Recipe]) -> int:
    """One step of one cell for each shape."""
    shapes: dict[str, SweepCell] = {}
    for cell, recipe in zip(cells, recipes, strict=True):
        plain = recipe.model_dump(mode="json")
        train = {
            key: plain["train"][key] for key in ("batch_size", "chunk", "accumulate", "precision")
        }
        shapes.setdefault(json.dumps({**plain, **_SAME_SHAPE, "train": train}), cell)
    for number, cell in enumerate(shapes.values(), start=1):
        console.say(f"[{number}/{len(shapes)}] {cell.folder}")
        request_of_cell = TrainRequest(
            recipe=request.recipe, overrides=_settings(request, cell), dry_run=True
        )
        if status := start_training(request_of_cell):
            return 128 + status
    return 0


def _state(run: Path) -> str:
    state = read_state(run)
    return "-" if state is None else state.state


def _print_list(root: Path, cells: Sequence[SweepCell]) -> None:
    rows = [
        [cell.index, cell.folder, " ".join(cell.overrides), _state(root / cell.folder)]
        for cell in cells
    ]
    console.print_table(str(root), ["index", "folder", "overrides", "state"], rows)


def _report(request: SweepRequest, cells: Sequence[SweepCell], outcome: Outcome) -> int:
    states = [_state(request.root / cell.folder) for cell in cells]
    counts = [f"{states.count(name)} {name}" for name in dict.fromkeys(states) if name != "-"]
    if waiting := states.count("-"):
        counts.append(f"{waiting} not started")
    console.say(f"{len(cells)} cells: {', '.join(counts)}. Sweep: {request.root}")
    if outcome.signal_number:
        console.say("Stopped; run the same command to continue from the last checkpoints.")
        return 128 + outcome.signal_number
    if outcome.failed:
        names = ", ".join(outcome.failed[:3]) + (", ..." if len(outcome.failed) > 3 else "")
        console.say(
            f"{len(outcome.failed)} failed: {names}. See logs/ there; the same command tries them"
            " again."
        )
        return FAILED_CELLS
    console.say(f"Next: vlkd compare {shlex.quote(str(request.root))}")
    return 0
