"""From the words of `vlkd train` to running workers: everything is checked before any process
starts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd_cli import console
from vlkd_cli.engine.launching.launch import (
    Placement,
    joins_running_job,
    quieten_libraries,
    run_workers,
)
from vlkd_cli.engine.launching.run_folder import RunFolder, existing_run, fresh_run, latest_run
from vlkd_cli.engine.launching.run_record import asks_for_report, recorded
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.recipe.load import load_recipe, load_unchecked
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.snapshot import recipe_to_json, write_snapshot

if TYPE_CHECKING:
    from vlkd_cli.engine.worker import Job

LATEST = "latest"

# What may change between a run and its continuation without changing its numbers.
FREE_TO_CHANGE = {"reports", "evals"}
FREE_TRAIN_KEYS = {
    "save_every_steps",
    "save_every_epochs",
    "save_every_minutes",
    "keep",
    "best",
    "log_every_steps",
    "cache_dir",
}


def start_training(
    *,
    recipe: str | None,
    overrides: Sequence[str],
    gpus: int | None = None,
    cpu_workers: int | None = None,
    resume: str | None = None,
    run: Path | None = None,
    runs: Path = Path("runs"),
    dry_run: bool = False,
    nodes: int = 1,
    node_rank: int = 0,
    rendezvous: str | None = None,
    max_restarts: int = 0,
    trust: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Check, prepare the run folder, start the workers; see `commands/train.py` for the arguments.

    Returns:
        0, or the number of the signal that stopped the run after a save.
    """
    if recipe is None and resume in (None, LATEST):
        raise UserError(
            "say which recipe to train: `vlkd train RECIPE`; `vlkd recipes list` shows the shipped"
            " ones."
        )
    if trust and (resume is None or recipe is not None):
        raise UserError(
            "--trust has no effect here: your own recipe may name anything. It is for --resume RUN"
            " without a recipe."
        )
    # The recipe before the machine: a misspelt key is told without waiting for torch.
    checked = load_recipe(recipe, overrides, to_train=True) if recipe is not None else None
    if not verbose:
        quieten_libraries()
    placement = choose_placement(gpus, cpu_workers, nodes, node_rank, rendezvous, max_restarts)
    name = Path(recipe).stem if recipe is not None else ""
    if resume is not None:
        folder = run_to_resume(resume, run, runs, name)
        before = load_unchecked(folder.recipe)
        if checked is None:
            checked = load_recipe(folder.recipe, overrides, foreign=not trust, to_train=True)
        refuse_another_recipe(before, checked, folder)
    elif dry_run:
        folder = RunFolder(Path(tempfile.mkdtemp(prefix="vlkd-dry-run-")))
    else:
        folder = RunFolder(run) if run is not None else fresh_run(name, runs)
        if (folder.checkpoints / "last.pt").exists():
            raise CheckpointError(
                f"{folder.path} holds a run already. Continue it with --resume {folder.path}, or"
                " choose another --run."
            )
    assert checked is not None
    from vlkd_cli.engine import worker

    is_first = (
        not joins_running_job() or os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "0"
    )
    if nodes > 1 and run is None and resume is None and not dry_run:
        raise UserError(
            "with --nodes every machine must know the run's folder: give the same --run FOLDER, on"
            " a disk that all see."
        )
    if joins_running_job() and run is None and resume is None and not dry_run:
        raise UserError(
            "under torchrun or SLURM every process must know the run's folder: give it with --run"
            " FOLDER (torchrun: `torchrun ... -m -- vlkd_cli train ...`)."
        )
    folder.create()
    # Stopped before its first save, a run goes on from its beginning.
    is_begun = resume is not None and any(folder.checkpoints.glob("*.pt"))
    if is_first and resume is None:
        write_snapshot(checked, folder.path)
    elif is_first and not is_begun:
        console.say(f"{folder.path} has no checkpoint yet: starting from the beginning.")
    job = worker.Job(
        recipe=recipe_to_json(checked),
        run=str(folder.path),
        device=placement.device,
        resume=is_begun,
        dry_run=dry_run,
        quiet=quiet,
    )
    # A group that the agent starts again goes on from the last checkpoint; the first attempt
    # finds none.
    target = restartable if placement.max_restarts else worker.train
    if dry_run:
        try:
            return run_workers(target, job, placement, folder.logs)
        finally:
            if is_first:
                shutil.rmtree(folder.path, ignore_errors=True)
    with recorded(
        folder.path,
        resumed=is_begun,
        first=is_first,
        report=asks_for_report(checked),
    ) as record:
        record.status = run_workers(target, job, placement, folder.logs)
    return record.status


def restartable(job: Job) -> int:
    """Train from the last checkpoint where there is one."""
    from vlkd_cli.engine import worker

    has_checkpoint = (Path(job.run) / "checkpoints" / "last.pt").exists()
    return worker.train(replace(job, resume=job.resume or has_checkpoint))


def choose_placement(
    gpus: int | None,
    cpu_workers: int | None,
    nodes: int = 1,
    node_rank: int = 0,
    rendezvous: str | None = None,
    max_restarts: int = 0,
) -> Placement:
    """Where workers run, checked against this machine.

    Raises:
        UserError: both kinds asked for, more GPUs than there are, or several machines without a
            meeting point.
    """
    import torch

    if gpus is not None and cpu_workers is not None:
        raise UserError("--gpus and --cpu-workers exclude each other.")
    if nodes > 1 and rendezvous is None:
        raise UserError(
            "--nodes needs --rendezvous HOST:PORT of the first machine, the same on every machine."
        )
    if node_rank >= nodes:
        raise UserError(
            f"--node-rank {node_rank} is out of range for --nodes {nodes}; it counts from 0."
        )
    available = torch.cuda.device_count()
    if gpus is not None and gpus > available:
        there = f"there are {available}" if available else "there is none"
        raise UserError(
            f"--gpus {gpus}: {there} on this machine. Use --cpu-workers {gpus} to run on the CPU."
        )
    device = "cpu" if cpu_workers is not None else ("cuda" if available else "cpu")
    return Placement(gpus or cpu_workers or 1, device, nodes, node_rank, rendezvous, max_restarts)


def run_to_resume(resume: str, run: Path | None, runs: Path, recipe_name: str) -> RunFolder:
    """The run that `--resume [RUN]` means."""
    if resume != LATEST:
        return existing_run(Path(resume), runs)
    return existing_run(run, runs) if run is not None else latest_run(runs, recipe_name)


def refuse_another_recipe(before: Recipe, now: Recipe, folder: RunFolder) -> None:
    """A run goes on only with the recipe that it began with.

    Raises:
        CheckpointError: they differ in something that changes the numbers; names the first such
            key.
    """
    different = first_difference(_fixed(before), _fixed(now))
    if different is not None:
        key, was, is_now = different
        raise CheckpointError(
            f"{folder.path} was trained with {key} {was!r}; this recipe says {is_now!r}. Go on with"
            f" the run's own recipe (vlkd train --resume {folder.path}), or start a new run without"
            " --resume."
        )


def first_difference(
    before: object, now: object, key: str = ""
) -> tuple[str, object, object] | None:
    """Key path and both values of the first place where two trees of plain values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            found = first_difference(
                before.get(name), now.get(name), f"{key}.{name}" if key else str(name)
            )
            if found is not None:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return next(
            (
                found
                for n, (a, b) in pairs
                if (found := first_difference(a, b, f"{key}[{n}]")) is not None
            ),
            None,
        )
    return None if before == now else (key, before, now)


def _fixed(recipe: Recipe) -> dict[str, object]:
    plain = {
        key: value
        for key, value in recipe.model_dump(mode="json").items()
        if key not in FREE_TO_CHANGE
    }
    plain["train"] = {
        key: value for key, value in plain["train"].items() if key not in FREE_TRAIN_KEYS
    }
    if plain.get("data"):
        plain["data"] = {
            key: value for key, value in plain["data"].items() if key not in ("workers", "prefetch")
        }
    return plain
