"""What a run folder records about its run: everything but weights, read without torch.

A file that is missing leaves its part empty; one that cannot be read is named in `unreadable`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.data.files.texts import decode_text, parse_json, read_file
from vlkd_cli.errors import CheckpointError
from vlkd_cli.numerics.directions import lower_is_better
from vlkd_cli.recipe.yaml_file import plain_values
from vlkd_cli.reports.csv import read_metrics
from vlkd_cli.reports.result_file import ResultJson, read_result
from vlkd_cli.reports.state import RunState, read_state

Series = list[tuple[int, float]]
BEFORE_EXTENSION = "before_extension"
"""Folders of this name and a number hold results from before a run was extended."""
FAILED = ".failed.json"
"""The suffix of files with the reason why a cell of a table could not be measured."""
# What may differ between two runs of one group: it changes no number that is trained.
IGNORED_SECTIONS = {"evals", "reports", "synthesis"}
IGNORED_KEYS = {
    "train.seed",
    "train.cache_dir",
    "train.log_every_steps",
    "train.save_every_steps",
    "train.save_every_epochs",
    "train.save_every_minutes",
    "train.save_in_background",
    "train.keep",
    "train.best",
    "data.workers",
    "data.prefetch",
}


class Metric(NamedTuple):
    """One figure of one suite on one data set."""

    suite: str
    dataset: str
    name: str

    def __str__(self) -> str:
        return f"{self.suite}.{self.dataset}.{self.name}"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one: ranks, losses, errors, distances."""
        return lower_is_better(self.name)


class StoredResult(NamedTuple):
    """A result file; `step` is None for one of `vlkd eval`."""

    path: Path
    step: int | None
    content: ResultJson

    @property
    def key(self) -> tuple[str, str]:
        name = self.content.get("name") or self.content.get("suite", "")
        return str(name), str(self.content.get("dataset", ""))

    @property
    def rows(self) -> str:
        """Digest of the rows; empty where unknown."""
        return str((self.content.get("hashes") or {}).get("rows", ""))

    def sidecar(self, kind: str) -> Path:
        """The file next to it, `items` or `map`."""
        return self.path.with_name(f"{self.path.name.removesuffix('.json')}.{kind}.npz")


@dataclass
class RunRecord:
    """One run folder as plain values."""

    path: Path
    recipe: dict[str, object] = field(default_factory=dict)
    versions: dict[str, object] = field(default_factory=dict)
    state: RunState | None = None
    training: dict[str, Series] = field(default_factory=dict)
    """Logged values by name, without `train/`."""
    evaluations: dict[Metric, Series] = field(default_factory=dict)
    """Values during the run, and those of `vlkd eval` where the run itself had none."""
    results: list[StoredResult] = field(default_factory=list)
    """Oldest step first; those of `vlkd eval` last."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Names and reasons of broken files."""
    unreadable: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def section(self, key: str) -> Mapping[str, object]:
        """A section of the recipe; empty where it has none."""
        found = self.recipe.get(key)
        return found if isinstance(found, Mapping) else {}

    @property
    def command(self) -> list[str]:
        """The words of the command that started it."""
        found = self.versions.get("command")
        return [str(word) for word in found] if isinstance(found, list) else []

    @property
    def seed(self) -> int | None:
        """`train.seed`, if the recipe sets it."""
        found = self.section("train").get("seed")
        return found if isinstance(found, int) else None

    @property
    def watched(self) -> Metric | None:
        """The metric that `train.best` names, where it was evaluated."""
        best = self.section("train").get("best")
        return self.find_metric(best) if isinstance(best, str) else None

    @property
    def recipe_name(self) -> str:
        """What the command called the recipe; the folder's name without its time otherwise."""
        if "train" in self.command:
            after = self.command[self.command.index("train") + 1 :]
            if after and not after[0].startswith("-"):
                return Path(after[0]).stem
        return re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", self.name)

    @property
    def last_step(self) -> int:
        """The last step that anything is known of."""
        steps = [series[-1][0] for series in self.training.values() if series]
        return max([*steps, self.state.step if self.state else 0], default=0)

    def find_metric(self, words: str) -> Metric | None:
        """The metric called SUITE.METRIC or SUITE.DATASET.METRIC; of several data sets, the first,
        as `train.best` means it."""
        suite, _, rest = words.partition(".")
        for metric in self.evaluations:
            if metric.suite == suite and rest in (metric.name, f"{metric.dataset}.{metric.name}"):
                return metric
        return None

    def primary_metrics(self) -> list[Metric]:
        """The metric that each suite and data set is summarized by."""
        found: dict[tuple[str, str], Metric] = {}
        for result in self.results:
            metric = Metric(*result.key, str(result.content.get("primary_metric", "")))
            if metric in self.evaluations:
                found.setdefault(result.key, metric)
        for metric in self.evaluations:
            found.setdefault(metric[:2], metric)
        return list(found.values())

    def best(self, metric: Metric) -> tuple[int, float] | None:
        """Step and value of the best evaluation; of equal ones the first."""
        series = [point for point in self.evaluations.get(metric, ()) if math.isfinite(point[1])]
        sign = -1 if metric.lower_is_better else 1
        return max(series, key=lambda point: sign * point[1], default=None)

    def last(self, metric: Metric) -> tuple[int, float] | None:
        """Step and value of the last evaluation."""
        series = self.evaluations.get(metric)
        return series[-1] if series else None

    def result_of(self, metric: Metric, step: int | None = None) -> StoredResult | None:
        """The result file with this metric at a step; by default, or where there is none of that
        step, the last one."""
        files = [
            result
            for result in self.results
            if result.key == metric[:2] and metric.name in result.content["metrics"]
        ]
        exact = [result for result in files if step is not None and result.step == step]
        found = exact or files
        return found[-1] if found else None

    def chance(self, metric: Metric) -> float | None:
        """What a random encoder would reach, where that is known."""
        result = self.result_of(metric)
        found = (result.content.get("chance") or {}).get(metric.name) if result else None
        return float(found) if isinstance(found, int | float) else None


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        CheckpointError: it is not a run folder: it has no recipe.yaml.
    """
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} is not a run folder: it has no recipe.yaml.")
    record = RunRecord(folder, state=read_state(folder))
    record.recipe = _read(record, "recipe.yaml", _recipe)
    record.versions = _read(record, "versions.json", parse_json)
    _read_metrics(record)
    _read_results(record)
    for file in sorted(folder.glob("skipped*.csv")):
        try:
            text = read_file(file).decode("utf-8", "replace").replace("\0", "")
            rows = csv.reader(io.StringIO(text, newline=""))
            record.skipped += [(row[0], row[1]) for row in rows if len(row) >= 2]
        except (OSError, csv.Error):
            record.unreadable.append(file.name)
    return record


def flat_recipe(recipe: Mapping[str, object], *, of_group: bool = False) -> dict[str, str]:
    """A recipe as dotted keys and values in YAML's words.

    Args:
        recipe: the content of a `recipe.yaml`.
        of_group: leave out what runs of one group may differ in: seed, workers, logging; absolute
            paths count by their last part.
    """
    flat = dict(_flatten(recipe, ""))
    if not of_group:
        return flat
    return {
        key: Path(value).name if value.startswith(("/", "~")) else value
        for key, value in flat.items()
        if key not in IGNORED_KEYS and re.split(r"[.\[]", key)[0] not in IGNORED_SECTIONS
    }


def _flatten(value: object, key: str) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flatten(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _flatten(item, f"{key}[{number}]")
    elif value is not None and value != {} and value != []:
        yield key, _word(value)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_word, value))}]"
    # Short where that is the number: runs of nearly equal rates are of different recipes.
    is_short = isinstance(value, float) and float(f"{value:g}") == value
    return f"{value:g}" if is_short else str(value)


def _recipe(text: str) -> object:
    """A recipe whose sections are of the right kind, whatever their keys."""
    found = plain_values(text)
    kinds = {"towers": dict, "data": dict, "train": dict, "optimizer": dict, "distillers": list}
    for name, kind in kinds.items():
        if isinstance(found, dict) and not isinstance(found.get(name), kind | None):
            raise ValueError(f"{name} is of another kind")
    return found


def _read(record: RunRecord, name: str, parse: Callable[[str], object]) -> dict[str, object]:
    path = record.path / name
    if not path.is_file():
        return {}
    try:
        found = parse(decode_text(read_file(path)))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    record.unreadable.append(name)
    return {}


def _read_metrics(record: RunRecord) -> None:
    if not (record.path / "metrics.csv").is_file():
        return
    try:
        logged = read_metrics(record.path)
    except CheckpointError:
        record.unreadable.append("metrics.csv")
        return
    for name, series in logged.items():
        kind, _, rest = name.partition("/")
        if kind == "train":
            record.training[rest] = series
        elif kind == "eval" and rest.count(".") >= 2:
            suite, _, rest = rest.partition(".")
            dataset, _, metric = rest.rpartition(".")
            record.evaluations[Metric(suite, dataset, metric)] = series


MTEB_FOLDER = "mteb"
"""The folder of mteb's own files below the results."""


def _read_results(record: RunRecord) -> None:
    folder = record.path / "results"
    found: list[StoredResult] = []
    for path in sorted(folder.rglob("*.json")):
        is_old = path.relative_to(folder).parts[0].startswith(BEFORE_EXTENSION)
        is_of_mteb = MTEB_FOLDER in path.relative_to(folder).parts
        if is_old or is_of_mteb or path.name.endswith(FAILED):
            continue
        step = re.fullmatch(r"step_(\d+)", path.parent.name)
        if (content := read_result(path)) is None:
            record.unreadable.append(str(path.relative_to(record.path)))
            continue
        found.append(StoredResult(path, int(step[1]) if step else None, content))
    found.sort(key=lambda result: (result.step is None, result.step or 0))
    record.results = found
    during = set(record.evaluations)
    for result in found:
        for name, value in result.content["metrics"].items():
            metric = Metric(*result.key, name)
            if metric not in during and value is not None:
                at = record.last_step if result.step is None else result.step
                record.evaluations.setdefault(metric, []).append((at, float(value)))
