"""The result that `train.best` names: whether there is one, its best value, and how long none was
better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures
from vlkd_cli.recipe.schema import TrainSpec
from vlkd_cli.reports.records import Metric


@dataclass
class Watch:
    """The best value of `train.best` so far, and the evaluations since then.

    Args:
        settings: `best`, `patience` and `min_delta`.
        best: its value; None before the first finite one.
        waited: evaluations in a row that were not better.
    """

    settings: TrainSpec
    best: float | None = None
    waited: int = 0

    def note(self, results: Sequence[Result]) -> bool:
        """Take in the results of one step; whether the watched one is the best so far. Where it was
        not evaluated, nothing changes."""
        watched = watched_value(self.settings.best, results)
        if watched is None:
            return False
        if watched.improves_on(self.best, self.settings.min_delta):
            self.best, self.waited = watched.value, 0
            return True
        self.waited += 1
        return False

    @property
    def is_over(self) -> bool:
        """Whether `train.patience` ends the run."""
        patience = self.settings.patience
        return patience is not None and self.waited >= patience


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

    def improves_on(self, best: float | None, min_delta: float = 0.0) -> bool:
        """Whether it is better than the best so far by more than `min_delta`; one that is not
        finite never is."""
        if not math.isfinite(self.value) or best is None:
            return math.isfinite(self.value)
        if Metric("", "", self.metric).lower_is_better:
            return self.value < best - min_delta
        return self.value > best + min_delta


def watched_value(best: str | None, results: Sequence[Result]) -> Watched | None:
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
