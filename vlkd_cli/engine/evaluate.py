"""One evaluation process: recipe (and weights) -> towers -> suites. What `vlkd eval` runs on every
rank."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkd_cli import console
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.build import build_towers, captions_of
from vlkd_cli.engine.checkpoint import load_checkpoint
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.periodic import subject_of
from vlkd_cli.errors import CheckpointError, UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import print_results, run_suites
from vlkd_cli.recipe.schema import EvalSpec, Recipe
from vlkd_cli.towers.tower import Tower


@dataclass(frozen=True)
class EvalJob:
    """What an evaluation worker is told; plain values only.

    Args:
        recipe: the recipe as JSON.
        specs: the suites with their keys, as JSON.
        folder: where results go, and where a run keeps its tokenizer.
        checkpoint: weights of what was trained; None evaluates the towers as they are built.
        output: a file for all results as one JSON list.
        data_root: where data sets are looked up by name.
        wise_ft: shares of the trained image tower in interpolations with its start.
    """

    recipe: str
    specs: str
    folder: str
    checkpoint: str | None = None
    output: str | None = None
    device: str = "auto"
    data_root: str | None = None
    wise_ft: tuple[float, ...] = ()


def evaluate(job: EvalJob) -> int:
    """Run the suites and keep the results; 0, or the number of the signal that stopped it (finished
    features are kept)."""
    device = runtime.pick_device(job.device)
    with Interruption().watched() as interruption:
        try:
            with interruption.dropping():
                _evaluate(job, device)
        except Interrupted:
            if runtime.is_main():
                console.say(
                    "Stopped. Features that were computed are kept; the same command goes on from"
                    " there."
                )
            return interruption.signal_number or signal.SIGINT
    return 0


def _evaluate(job: EvalJob, device: Any) -> None:
    recipe = Recipe.model_validate_json(job.recipe)
    folder = Path(job.folder)
    towers = load_towers(recipe, folder, None if job.checkpoint is None else Path(job.checkpoint))
    for tower in towers.values():
        tower.to(device)
    subject = subject_of(recipe, towers, device)
    subject.cache = cache_folder(recipe.train.cache_dir)
    subject.output = folder / "results"
    subject.data_root = None if job.data_root is None else Path(job.data_root)
    specs = [EvalSpec.model_validate(spec) for spec in json.loads(job.specs)]
    if job.wise_ft:
        if subject.image is None:
            raise UserError("--wise-ft interpolates an image tower, and this recipe has none.")
        start = load_towers(recipe, folder, None)[subject.image.name]
        subject.image_start = start.to(device)
        from vlkd_cli.evaluation.probes.wise_ft import wise_ft

        results = wise_ft(
            subject, specs, job.wise_ft, folder=subject.output if runtime.is_main() else None
        )
    else:
        results = run_suites(subject, specs, folder=subject.output)
    if runtime.is_main():
        _report(job, results, subject.output)


def load_towers(recipe: Recipe, folder: Path, checkpoint: Path | None) -> dict[str, Tower]:
    """The towers of a recipe, with the trained weights of a checkpoint (their average where the run
    kept one).

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to another recipe.
    """

    def captions() -> Any:
        if recipe.data is None:
            return ()
        source = captions_of(open_reader(recipe.data))
        return () if source is None else source()

    built = build_towers(
        recipe, captions=captions, run_folder=folder, cache_dir=cache_folder(recipe.train.cache_dir)
    )
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        for name, weights in state["towers"].items():
            tower = built.get(name)
            if not isinstance(tower, Tower):
                raise CheckpointError(
                    f"{checkpoint} holds a tower '{name}' that the recipe has not. Use the recipe"
                    " of its run."
                )
            prefix = f"towers.{name}."
            averaged = {
                key.removeprefix(prefix): value
                for key, value in state["ema"].items()
                if key.startswith(prefix)
            }
            try:
                tower.load_trainable_state(
                    {**weights, **{key: value for key, value in averaged.items() if key in weights}}
                )
            except (RuntimeError, KeyError, ValueError) as error:
                raise CheckpointError(
                    f"{checkpoint} does not fit tower '{name}':"
                    f" {str(error).strip().splitlines()[0]}"
                ) from error
        for name, tower in built.items():
            if isinstance(tower, MomentumTower):
                weights = {
                    k.removeprefix(f"{name}."): v
                    for k, v in state["followers"].items()
                    if k.startswith(f"{name}.")
                }
                tower.load_state_dict(weights)
    return {
        name: tower.tower if isinstance(tower, MomentumTower) else tower
        for name, tower in built.items()
    }


def _report(job: EvalJob, results: list[Result], kept: Path | None) -> None:
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
                f"--output {path} cannot be written: {error.strerror}. The results are in {kept}."
            ) from error
        console.say(f"Results: {path}")
    elif kept is not None:
        console.say(f"Results: {kept}")
