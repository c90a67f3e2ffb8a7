"""What happens every so many steps, epochs or minutes: evaluations and saves."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from vlkd_cli.checkpoint import Source
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.engine.watching import Watch, check_best
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import (
    Stored,
    build_suite,
    chosen_by,
    print_results,
    run_suites,
    stored_metrics,
    stored_results,
)
from vlkd_cli.evaluation.suite import Measures
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.evaluation_data import with_data
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe, TrainSpec
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName
from vlkd_cli.towers.tower import Tower


class Saves:
    """When checkpoints are due: as set in `train`, at the end, and before the cooldown."""

    def __init__(
        self,
        settings: TrainSpec,
        steps_per_epoch: int,
        total_steps: int,
        cooldown_start: int | None = None,
    ) -> None:
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        self.total_steps, self.cooldown_start = total_steps, cooldown_start
        self._last_save = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this many steps; minutes go by this process's clock."""
        settings = self.settings
        return (
            step in (self.total_steps, self.cooldown_start)
            or (settings.save_every_steps is not None and step % settings.save_every_steps == 0)
            or (
                settings.save_every_epochs is not None
                and step % (settings.save_every_epochs * self.steps_per_epoch) == 0
            )
            or (
                settings.save_every_minutes is not None
                and time.monotonic() - self._last_save >= 60 * settings.save_every_minutes
            )
        )

    def done(self) -> None:
        """A checkpoint was just written."""
        self._last_save = time.monotonic()


class Evaluations:
    """The recipe's `evals:` over a run: when each is due, what came out last, and which result was
    best."""

    def __init__(
        self,
        recipe: Recipe,
        towers: Mapping[str, Tower],
        folder: RunFolder,
        device: torch.device,
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        self.recipe, self.folder = recipe, folder
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        self.watch = Watch(recipe.train)
        self.last: list[Result] = []
        self._subject = subject_of(recipe, towers, device)
        self.specs = [with_data(recipe, spec) for spec in recipe.evals]
        self._check()

    def _check(self) -> None:
        """Build every suite, open its data and find the metric of `train.best`, so that mistakes
        end a run before its first step and not after its first epoch."""
        found: list[tuple[str, Measures | None]] = []
        for number, spec in enumerate(self.specs):
            subject = chosen_by(spec, self._subject)
            suite = build_suite(spec, subject)
            try:
                opened = suite.open(subject)
            except UserError as error:
                raise type(error)(_with_key(str(error), number, spec)) from error
            found.append((spec.title, suite.measures(opened)))
        check_best(self.recipe.train.best, found)

    def due(self, step: int) -> list[EvalSpec]:
        """The suites to run after this many steps."""
        return [spec for spec in self.specs if self._is_due(spec, step)]

    def run(self, step: int, specs: Sequence[EvalSpec]) -> dict[str, float]:
        """Run these suites after this many steps; the metrics as logged."""
        weights = Source(
            run=str(self.folder.path),
            file="",
            step=step,
            averaged=self.recipe.train.ema is not None,
        )
        results = run_suites(
            replace(self._subject, model=weights),
            specs,
            folder=self.folder.results / f"step_{step:08d}" if runtime.is_main() else None,
        )
        if step == 0:
            _require_chance(specs, results)
        self.last = results
        return {
            f"eval/{result.name}.{result.dataset}.{name}": value
            for result in results
            for name, value in result.metrics.items()
        }

    def end_at(self, step: int) -> list[EvalSpec]:
        """The run ends with this step; the suites of the end that were not due at it."""
        before = self.due(step)
        self.total_steps = step
        return [spec for spec in self.due(step) if spec not in before]

    def one_line(self, step: int) -> str:
        """The newest results in short: the primary metric of each suite, and what chance would
        reach."""
        shown = []
        for result in self.last:
            chance = (
                f" (chance {result.chance[result.primary_metric]:.3f})"
                if result.primary_metric in result.chance
                else ""
            )
            shown.append(
                f"{result.name} {result.dataset} {result.primary_metric}"
                f" {result.metrics[result.primary_metric]:.3f}{chance}"
            )
        return f"step {step}: " + ", ".join(shown)

    def print_last(self) -> None:
        """The table of the newest results, next to those before training where there are any; of a
        run that was complete already, as its files have them."""
        results: list[Result] | list[Stored] = self.last or stored_results(
            self.folder.results / f"step_{self.total_steps:08d}"
        )
        if results:
            before = stored_metrics(self.folder.results / "step_00000000")
            print_results(results, before, {spec.title for spec in self.specs if spec.reference})

    def _is_due(self, spec: EvalSpec, step: int) -> bool:
        if step == 0:
            return spec.first or spec.reference
        if step == self.total_steps and spec.last:
            return True
        return (spec.every_steps is not None and step % spec.every_steps == 0) or (
            spec.every_epochs is not None and step % (spec.every_epochs * self.steps_per_epoch) == 0
        )


def subject_of(recipe: Recipe, towers: Mapping[str, Tower], device: torch.device) -> Subject:
    """What is evaluated: the recipe's tower of each modality. With several of a modality, the one
    called like it, else one that is trained rather than following another or frozen."""

    def chosen(modality: ModalityName) -> Tower | None:
        candidates = [name for name, tower in towers.items() if tower.modality == modality]
        if not candidates:
            return None

        def rank(name: str) -> tuple[bool, bool, bool]:
            follows = recipe.towers[name].follows is not None
            return name != modality, follows, towers[name].is_frozen

        return towers[min(candidates, key=rank)]

    subject = Subject(
        image=None,
        text=None,
        towers=dict(towers),
        device=device,
        precision=recipe.train.precision,
        batch_size=max(recipe.train.batch_size, 64),
        workers=recipe.data.workers if recipe.data else 0,
        cache=None,
    )
    for tower in map(chosen, MODALITY_NAMES):
        subject = subject if tower is None else subject.with_tower(tower)
    return subject


def _require_chance(specs: Sequence[EvalSpec], results: Sequence[Result]) -> None:
    """Retained fractions are measured from chance.

    Raises:
        RecipeError: a reference gives none.
    """
    references = {spec.title for spec in specs if spec.reference}
    for result in results:
        if result.name in references and result.primary_metric not in result.chance:
            raise RecipeError(
                f"evals: '{result.name}' is a reference, and its suite gives no chance for"
                f" {result.primary_metric}, which the retained fraction needs. Use first: true."
            )


def _with_key(message: str, number: int, spec: EvalSpec) -> str:
    """A reader's message, which speaks of `data.KEY`, for the data of an entry of `evals:`."""
    data = spec.keys.get("data")
    reader = data.get("reader") if isinstance(data, dict) else None
    for key in signature_of("reader", reader).key_names() if isinstance(reader, str) else ():
        message = re.sub(rf"(?<![\w./])data\.{key}\b", f"evals[{number}].data.{key}", message)
    here = f"evals[{number}]"
    return message if here in message else f"{here}: {message}"
