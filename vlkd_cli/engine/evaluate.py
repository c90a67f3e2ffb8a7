"""One evaluation process: recipe (and weights) -> towers -> suites. What `vlkd eval` runs on every
rank."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch

from vlkd_cli import console
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.checkpoint import Checkpoint, load_problem
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.build_towers import build_towers, say_sources
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.engine.training_data import captions_of
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import print_results, run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.load import recipe_from_json
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.towers.exported import complete
from vlkd_cli.towers.tower import Tower


@dataclass(frozen=True)
class EvalJob:
    """Arguments of an evaluation worker; plain values only.

    Args:
        recipe: the recipe as JSON.
        specs: the suites with their keys, as JSON.
        folder: where results go, and where a run stores its tokenizer.
        checkpoint: weights of what was trained; None evaluates the towers as they are built.
        output: a file for all results as one JSON list.
        data_root: where data sets are looked up by name.
        exported: folders of exported towers by name, whose heads are read from there.
        wise_ft: weights of the trained towers in interpolations with their starts.
        wise_ft_towers: only these towers; by default every one that was trained.
    """

    recipe: str
    specs: str
    folder: str
    checkpoint: str | None = None
    output: str | None = None
    device: str = "auto"
    data_root: str | None = None
    wise_ft: tuple[float, ...] = ()
    wise_ft_towers: tuple[str, ...] = ()
    exported: Mapping[str, str] = field(default_factory=dict)


def evaluate(job: EvalJob) -> int:
    """Run the suites and write the results; 0, or the number of the signal that stopped it
    (finished features stay cached)."""
    device = runtime.pick_device(job.device)
    with Interruption().watched() as interruption:
        try:
            with interruption.dropping():
                _evaluate(job, device)
        except Interrupted:
            if runtime.is_main():
                console.say(
                    "Stopped. Computed features are cached; run the same command to resume."
                )
            return interruption.signal_number or signal.SIGINT
    return 0


def _evaluate(job: EvalJob, device: torch.device) -> None:
    recipe = recipe_from_json(job.recipe)
    folder = Path(job.folder)
    checkpoint = None if job.checkpoint is None else Path(job.checkpoint)
    data_root = None if job.data_root is None else Path(job.data_root)
    exported = {name: Path(path) for name, path in job.exported.items()}
    subject = subject_to_evaluate(
        recipe, folder, checkpoint, device, exported=exported, data_root=data_root
    )
    if subject.model is not None:
        console.say(f"Evaluating {subject.model}")
    say_sources(subject.towers.values())
    specs = [EvalSpec.model_validate(spec) for spec in json.loads(job.specs)]
    if job.wise_ft:
        loaded = None if checkpoint is None else Checkpoint.load(checkpoint)
        subject.starts = _starts(subject, load_towers(recipe, folder, loaded, trained=False), job)
        from vlkd_cli.evaluation.probes.wise_ft import wise_ft

        results = wise_ft(
            subject, specs, job.wise_ft, folder=subject.output if runtime.is_main() else None
        )
    else:
        results = run_suites(subject, specs, folder=subject.output)
    if runtime.is_main():
        _report(job, results, subject.output)


def _starts(subject: Subject, starts: dict[str, Tower], job: EvalJob) -> dict[str, Tower]:
    """The towers to interpolate, as they were before training.

    Raises:
        UserError: a tower that is named does not exist or was not trained.
    """
    trained = [name for name, tower in subject.towers.items() if not tower.is_frozen]
    for name in job.wise_ft_towers:
        if name not in subject.towers:
            raise UserError(
                f"--wise-ft-tower: no tower '{name}'.{did_you_mean(name, trained)} Trained:"
                f" {', '.join(trained) or 'none'}."
            )
        if name not in trained:
            raise UserError(
                f"--wise-ft-tower {name}: it was not trained in this run, so its start and its end"
                f" are the same. Trained: {', '.join(trained) or 'none'}."
            )
    return {name: starts[name].to(subject.device) for name in job.wise_ft_towers or trained}


def subject_to_evaluate(
    recipe: Recipe,
    folder: Path,
    checkpoint: Path | None,
    device: torch.device,
    *,
    exported: Mapping[str, Path] = MappingProxyType({}),
    data_root: Path | None = None,
) -> Subject:
    """The towers of a recipe on a device, and where their features and results go.

    Args:
        folder: whose `results/` takes the results, those of a checkpoint below `step_N/`.
        checkpoint: weights of what was trained; None: as they are built.
        exported: folders of exported towers by name, whose poolers and heads are read from there.
        data_root: where data sets are looked up by name.
    """
    loaded = None if checkpoint is None else Checkpoint.load(checkpoint)
    towers = load_towers(recipe, folder, loaded)
    for name, path in exported.items():
        complete(towers[name], path)
    for tower in towers.values():
        tower.to(device)
    subject = subject_of(recipe, towers, device)
    subject.cache = cache_folder(recipe.train.cache_dir)
    subject.output = folder / "results"
    if loaded is not None:
        subject.model = loaded.source
        subject.output /= f"step_{loaded.step:08d}"
    subject.data_root = data_root
    return subject


def load_towers(
    recipe: Recipe, folder: Path | None, checkpoint: Checkpoint | None, *, trained: bool = True
) -> dict[str, Tower]:
    """The towers of a recipe, with the trained weights of a checkpoint (their average if the run
    tracked one).

    Args:
        trained: false: as they were before training, with the tokenizer of the checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another recipe, or lacks a tower that was trained or
            its tokenizer.
    """

    def captions() -> Iterable[str]:
        assert recipe.data is not None
        source = captions_of(open_reader(recipe.data))
        return () if source is None else source()

    built = build_towers(
        recipe,
        captions=None if checkpoint is not None or recipe.data is None else captions,
        run_folder=folder,
        cache_dir=cache_folder(recipe.train.cache_dir),
        files={} if checkpoint is None else checkpoint.files,
    )
    if checkpoint is not None and trained:
        for name in checkpoint.towers:
            if not isinstance(built.get(name), Tower):
                raise CheckpointError(
                    f"{checkpoint.path} holds a tower '{name}' that the recipe does not have. Use"
                    " the recipe of its run."
                )
        for name, tower in built.items():
            _take_weights(name, tower, checkpoint)
    return {
        name: tower.tower if isinstance(tower, MomentumTower) else tower
        for name, tower in built.items()
    }


def _take_weights(name: str, tower: Tower | MomentumTower, checkpoint: Checkpoint) -> None:
    try:
        if isinstance(tower, MomentumTower):
            tower.load_state_dict(checkpoint.tower(name))
        elif not tower.is_frozen:
            tower.load_trainable_state(checkpoint.tower(name))
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.path} does not fit tower '{name}': {load_problem(error)}. Use the recipe"
            " of its run."
        ) from error


def _report(job: EvalJob, results: list[Result], saved: Path | None) -> None:
    print_results(results)
    if job.output is not None:
        path = Path(job.output)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps([result.to_json() for result in results], indent=2) + "\n",
                encoding="utf-8",
            )
        except OSError as error:
            raise UserError(
                f"--output {path} cannot be written: {error.strerror}. The results are in {saved}."
            ) from error
        console.say(f"Results: {path}")
    elif saved is not None:
        console.say(f"Results: {saved}")
