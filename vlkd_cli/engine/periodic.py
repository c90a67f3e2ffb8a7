"""What happens every so many steps, epochs or minutes: evaluations and saves."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.checkpoint import Source
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.launching.run_folder import RunFolder
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import build_suite, print_results, run_suites, with_tower
from vlkd_cli.evaluation.suite import Measures
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.evaluation_data import with_data
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.schema import EvalSpec, Recipe, TrainSpec
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName
from vlkd_cli.reports.records import Metric
from vlkd_cli.towers.tower import Tower


class Saves:
    """When checkpoints are due."""

    def __init__(self, settings: TrainSpec, steps_per_epoch: int, total_steps: int) -> None:
        self.settings, self.steps_per_epoch, self.total_steps = (
            settings,
            steps_per_epoch,
            total_steps,
        )
        self._last_save = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after this many steps; minutes go by this process's clock."""
        settings = self.settings
        return (
            step == self.total_steps
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
        self.best_value: float | None = None
        self.last: list[Result] = []
        self._subject = subject_of(recipe, towers, device)
        self.specs = [with_data(recipe, spec) for spec in recipe.evals]
        self._check()

    def _check(self) -> None:
        """Build every suite, open its data and find the metric of `train.best`, so that mistakes
        end a run before its first step and not after its first epoch."""
        found: list[tuple[str, Measures | None]] = []
        for number, spec in enumerate(self.specs):
            subject = with_tower(self._subject, spec.tower)
            suite = build_suite(spec, subject)
            try:
                opened = suite.open(subject)
            except UserError as error:
                raise type(error)(_with_place(str(error), number, spec)) from error
            found.append((spec.title, suite.measures(opened)))
        check_best(self.recipe.train.best, found)

    def due(self, step: int) -> list[EvalSpec]:
        """The suites to run after this many steps."""
        return [spec for spec in self.specs if self._is_due(spec, step)]

    def run(self, step: int) -> tuple[dict[str, float], bool]:
        """Evaluate what is due; the metrics as logged, and whether `train.best` reached a new best
        value."""
        weights = Source(
            run=str(self.folder.path),
            file="",
            step=step,
            averaged=self.recipe.train.ema is not None,
        )
        results = run_suites(
            replace(self._subject, model=weights),
            self.due(step),
            folder=self.folder.results / f"step_{step:08d}" if runtime.is_main() else None,
        )
        self.last = results
        values = {
            f"eval/{result.name}.{result.dataset}.{name}": value
            for result in results
            for name, value in result.metrics.items()
        }
        watched = watched_value(self.recipe.train.best, results)
        is_best = watched is not None and watched.improves_on(self.best_value)
        if watched is not None and is_best:
            self.best_value = watched.value
        return values, is_best

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
        """The table of the newest results."""
        if self.last:
            print_results(self.last)

    def _is_due(self, spec: EvalSpec, step: int) -> bool:
        if step == 0:
            return spec.first
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


def _with_place(message: str, number: int, spec: EvalSpec) -> str:
    """A reader's message, which speaks of `data.KEY`, for the data of an entry of `evals:`."""
    data = spec.keys.get("data")
    reader = data.get("reader") if isinstance(data, dict) else None
    for key in signature_of("reader", reader).key_names() if isinstance(reader, str) else ():
        message = re.sub(rf"(?<![\w./])data\.{key}\b", f"evals[{number}].data.{key}", message)
    here = f"evals[{number}]"
    return message if here in message else f"{here}: {message}"


def check_best(best: str | None, measured: Sequence[tuple[str, Measures | None]]) -> None:
    """Whether `train.best` (NAME.METRIC or NAME.DATASET.METRIC) names a metric that an entry of
    `evals:` gives.

    Args:
        measured: title of each entry, and what it gives, where that is known.

    Raises:
        RecipeError: it names none.
    """
    if best is None:
        return
    title, _, rest = best.partition(".")
    own = [measures for name, measures in measured if name == title]
    known = [measures for measures in own if measures is not None]
    if not own or len(known) < len(own):
        return  # checked with the recipe, or by nobody but the suite
    metrics = list(dict.fromkeys(metric for measures in known for metric in measures.metrics))
    for measures in known:
        middle = {rest.removesuffix(metric) for metric in measures.metrics if rest.endswith(metric)}
        if "" in middle or any(
            dataset.endswith(".") and (not measures.datasets or dataset[:-1] in measures.datasets)
            for dataset in middle
        ):
            return
    datasets = list(dict.fromkeys(name for measures in known for name in measures.datasets))
    dataset, _, metric = rest.rpartition(".")
    if metric in metrics and datasets:
        raise RecipeError(
            f"train.best: '{title}' does not measure data '{dataset}'."
            f"{did_you_mean(dataset, datasets)} It measures: {', '.join(datasets)}."
        )
    raise RecipeError(
        f"train.best: '{title}' has no metric '{metric}'.{did_you_mean(metric, metrics)} It has:"
        f" {', '.join(metrics)}."
    )


class Watched(NamedTuple):
    """The figure that `train.best` names."""

    metric: str
    value: float

    def improves_on(self, best: float | None) -> bool:
        """Whether it is better than the best so far; one that is not finite never is."""
        if not math.isfinite(self.value) or best is None:
            return math.isfinite(self.value)
        is_lower = Metric("", "", self.metric).lower_is_better
        return self.value < best if is_lower else self.value > best


def watched_value(best: str | None, results: list[Result]) -> Watched | None:
    """The figure of `train.best` (NAME.METRIC or NAME.DATASET.METRIC) in these results, or None
    where its suite was not due.

    Raises:
        RecipeError: the suite ran and has no such metric.
    """
    if best is None:
        return None
    title, _, rest = best.partition(".")
    own = [result for result in results if result.name == title]
    for result in own:
        for metric, value in result.metrics.items():
            if rest in (metric, f"{result.dataset}.{metric}"):
                return Watched(metric, value)
    metrics = list(dict.fromkeys(metric for result in own for metric in result.metrics))
    if own and not any(rest.endswith(f".{metric}") for metric in metrics):
        raise RecipeError(
            f"train.best: suite '{title}' has no metric '{rest}'. It has: {', '.join(metrics)}."
        )
    return None
