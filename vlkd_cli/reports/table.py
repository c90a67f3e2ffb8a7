"""The table of many models on many data sets, made from result files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from vlkd_cli.data.files.texts import read_json
from vlkd_cli.numerics.statistics import Averages, average_columns
from vlkd_cli.reports.records import Metric
from vlkd_cli.reports.result_file import ResultJson, read_result

PRIMARY = ("primary", "headline")
"""Words of `--metrics` for the one metric that a suite is summarized by."""


LONG_FORM = tuple(
    "target run checkpoint step weights suite dataset split protocol metric value chance low high"
    " num_items rows classes key seconds status error file".split()
)
"""The fields of the long form."""


class Cell(NamedTuple):
    """One suite of one model on one data set, and where its outcome is written."""

    model: int
    target: str
    entry: int
    dataset: str
    spec: int
    suite: str
    key: str
    """Of its result; empty where model or data could not be opened."""
    folder: str
    failure: str
    """The file with the reason why it failed."""


class Column(NamedTuple):
    """What is comparable: one metric, measured in one way on the same rows, classes and texts. All
    cells of a suite have the same keys; what it decided while it ran (a regularizer) may differ."""

    suite: str
    dataset: str
    metric: str
    split: str
    protocol: str
    hashes: str
    precision: str


class GroupMean(NamedTuple):
    """The mean of one suite over the data sets of a group."""

    name: str
    values: list[float | None]
    """Of each target; None unless it has a value for every data set."""
    chance: float | None


@dataclass
class Table:
    """Values by target and column; None: not measured."""

    targets: list[str]
    columns: list[Column]
    names: list[str]
    """Of the columns, each once."""
    values: list[list[float | None]]
    failed: list[list[bool]]
    possible: list[list[bool]]
    """Whether the target has the towers for the column."""
    chance: list[float | None]
    averages: Averages
    groups: list[GroupMean]
    """Means over the data sets of a collection or a part of it, where some target has one."""
    rows: list[dict[str, object]]
    """The long form: a line per target, column and metric."""
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def find_result(cell: Cell) -> ResultJson | None:
    """The result of a cell, where there is one that can be read."""
    if not cell.key:
        return None
    for path in sorted(Path(cell.folder).glob(f"*-{cell.key}.json")):
        content = read_result(path)
        if content is not None and isinstance(content.get("metrics"), dict):
            return {**content, "file": str(path)}
    return None


def make_table(
    cells: Sequence[Cell],
    metrics: Sequence[str] = ("primary",),
    groups: Sequence[NamedSets] = (),
) -> Table:
    """The table of these cells.

    Args:
        metrics: `primary`, `all`, or names of metrics.
        groups: data sets whose mean is reported too.
    """
    targets = list(dict.fromkeys(cell.target for cell in cells))
    found = [(cell, find_result(cell)) for cell in cells]
    columns: dict[Column, bool] = {}
    """Whether the column is of a primary metric."""
    values: dict[tuple[str, Column], tuple[float | None, float | None]] = {}
    rows: list[dict[str, object]] = []
    for cell, result in found:
        if result is None:
            rows.append(_failed_row(cell))
            continue
        for metric in _chosen(result, metrics):
            column = _column(cell, result, metric)
            columns[column] = columns.get(column) or metric == result.get("primary_metric")
            values[cell.target, column] = (
                _number(result["metrics"][metric]),
                _number((result.get("chance") or {}).get(metric)),
            )
            rows.append(_row(cell, result, metric))
    ordered = _ordered(columns, cells, found, metrics)
    chance = [_chance(column, targets, values) for column in ordered]
    matrix = [
        [values.get((target, column), (None, None))[0] for column in ordered] for target in targets
    ]
    failing = {(cell.target, cell.suite, cell.dataset) for cell, result in found if result is None}
    planned = {(cell.target, cell.suite, cell.dataset) for cell in cells}
    possible = [[(t, c.suite, c.dataset) in planned for c in ordered] for t in targets]
    names, notes = _names(ordered)
    # Those of the primary metrics, or all where none is; failed ones among them.
    used = [n for n, each in enumerate(ordered) if columns.get(each, True)]
    used = used if any(columns.values()) else list(range(len(ordered)))
    averages = _averages(ordered, matrix, chance, possible, used)
    notes += _notes_on_averages(averages.common_columns, len(used), targets, possible)
    means = _group_means(groups, targets, found)
    notes += [
        f"{mean.name}: no target has all {len(group.datasets)} data sets, so it has no mean"
        for group, own in means
        for mean in own
        if all(value is None for value in mean.values)
    ]
    return Table(
        targets,
        ordered,
        names,
        matrix,
        [[(t, c.suite, c.dataset) in failing for c in ordered] for t in targets],
        possible,
        chance,
        averages,
        [
            mean
            for _, own in means
            for mean in own
            if any(value is not None for value in mean.values)
        ],
        rows,
        notes,
        _failures(cell for cell, result in found if result is None),
    )


def _averages(
    columns: Sequence[Column],
    matrix: Sequence[Sequence[float | None]],
    chance: Sequence[float | None],
    possible: Sequence[Sequence[bool]],
    used: Sequence[int],
) -> Averages:
    """Summaries over the columns of these numbers."""
    if not matrix:
        return Averages([], [], [], [])
    found = average_columns(
        [[row[n] for n in used] for row in matrix],
        [chance[n] for n in used],
        [Metric("", "", columns[n].metric).lower_is_better for n in used],
        [[row[n] for n in used] for row in possible],
    )
    return found._replace(common_columns=[used[n] for n in found.common_columns])


def _notes_on_averages(
    common: Sequence[int],
    num_used: int,
    targets: Sequence[str],
    possible: Sequence[Sequence[bool]],
) -> list[str]:
    """Which columns the summaries use, and which targets have fewer of them."""
    notes = []
    if len(common) < num_used:
        notes.append(
            f"mean, normalized_mean and mean_rank use {len(common)} of {num_used} columns, those in"
            " which every target with the towers has a value"
        )
    for target, own in zip(targets, possible, strict=True):
        if (count := sum(own[n] for n in common)) < len(common):
            notes.append(
                f"{target}: its mean, normalized_mean and mean_rank use {count} of these"
                f" {len(common)} columns and do not compare with the others', for it lacks a tower"
            )
    return notes


class NamedSets(Protocol):
    """A group of data sets; see `evaluation.datasets.collections.Group`."""

    @property
    def name(self) -> str: ...
    @property
    def datasets(self) -> tuple[str, ...]: ...
    @property
    def by_items(self) -> bool: ...


Found = Sequence[tuple[Cell, ResultJson | None]]


def _group_means(
    groups: Sequence[NamedSets], targets: Sequence[str], found: Found
) -> list[tuple[NamedSets, list[GroupMean]]]:
    """For each group, the mean of each suite that measured one of its data sets: of the primary
    metric, over data that is the same for all targets."""
    results: dict[tuple[str, str], dict[str, ResultJson]] = {}
    for cell, result in found:
        own = results.setdefault((cell.suite, cell.dataset), {})
        first = next(iter(own.values()), result)
        if result is not None and first is not None and _measured_alike(first, result):
            own[cell.target] = result
    suites = list(dict.fromkeys(cell.suite for cell, _ in found))
    means = []
    for group in groups:
        own_means = []
        for suite in suites:
            own_results = [results.get((suite, name), {}) for name in group.datasets]
            if any(own_results):
                values = [_mean_of(own_results, target, group.by_items) for target in targets]
                chance = next((each for _, each in values if each is not None), None)
                name = f"{suite}.{group.name}"
                own_means.append(GroupMean(name, [value for value, _ in values], chance))
        means.append((group, own_means))
    return means


def _measured_alike(first: ResultJson, other: ResultJson) -> bool:
    parts = ("primary_metric", "split", "protocol", "hashes", "precision")
    return all(first.get(part) == other.get(part) for part in parts)


def _mean_of(
    results: Sequence[Mapping[str, ResultJson]], target: str, by_items: bool
) -> tuple[float | None, float | None]:
    """A target's mean over data sets and its chance level; None where one is missing."""
    own = [each[target] for each in results if target in each]
    if len(own) < len(results):
        return None, None
    weights = [float(result.get("num_items") or 0) if by_items else 1.0 for result in own]

    def mean(part: Literal["metrics", "chance"]) -> float | None:
        values = [_number((result.get(part) or {}).get(result["primary_metric"])) for result in own]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not sum(weights):
            return None
        return math.fsum(w * v for w, v in zip(weights, known, strict=True)) / sum(weights)

    return mean("metrics"), mean("chance")


def _read_failure(path: Path) -> dict[str, object] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _chosen(result: ResultJson, metrics: Sequence[str]) -> list[str]:
    own = list(result["metrics"])
    if "all" in metrics:
        return own
    wanted = [str(result["primary_metric"])] if set(metrics) & set(PRIMARY) else []
    return list(dict.fromkeys([*wanted, *(name for name in metrics if name in own)]))


def _column(cell: Cell, result: ResultJson, metric: str) -> Column:
    return Column(
        cell.suite,
        cell.dataset,
        metric,
        str(result.get("split", "")),
        str(result.get("protocol", "")),
        json.dumps(result.get("hashes") or {}, sort_keys=True),
        str(result.get("precision", "")),
    )


def _ordered(
    columns: Mapping[Column, object],
    cells: Sequence[Cell],
    found: Sequence[tuple[Cell, ResultJson | None]],
    metrics: Sequence[str],
) -> list[Column]:
    """By data set, then suite, as they were asked for; suites that only failed have a column
    too."""
    places = {(cell.suite, cell.dataset): (cell.entry, cell.spec) for cell in cells}
    have = {(column.suite, column.dataset) for column in columns}
    empty = [
        Column(cell.suite, cell.dataset, "", "", "", "", "")
        for cell, _ in found
        if (cell.suite, cell.dataset) not in have
    ]
    return sorted(
        [*columns, *dict.fromkeys(empty)], key=lambda column: places[column.suite, column.dataset]
    )


def _names(columns: Sequence[Column]) -> tuple[list[str], list[str]]:
    """A name for each column, and what differs where two would have the same: those carry 8 digits
    of their rows, or a number where the rows agree."""
    plain = [".".join(filter(None, (c.suite, c.dataset, c.metric))) for c in columns]
    names: list[str] = []
    notes: list[str] = []
    for number, column in enumerate(columns):
        name, twins = plain[number], [i for i, other in enumerate(plain) if other == plain[number]]
        if len(twins) > 1 and number != twins[0]:
            differing = [
                part
                for part in ("split", "protocol", "hashes", "precision")
                if getattr(column, part) != getattr(columns[twins[0]], part)
            ]
            rows = str(json.loads(column.hashes or "{}").get("rows", ""))[:8]
            name = f"{name}#{rows}"
            while name in names:
                name += "'"
            words = ["rows or classes" if part == "hashes" else part for part in differing]
            notes.append(f"{name} is not comparable with {plain[number]}: other {', '.join(words)}")
        names.append(name)
    return names, notes


def _chance(
    column: Column,
    targets: Sequence[str],
    values: Mapping[tuple[str, Column], tuple[float | None, float | None]],
) -> float | None:
    own = (values.get((target, column), (None, None))[1] for target in targets)
    return next((value for value in own if value is not None), None)


def _row(cell: Cell, result: ResultJson, metric: str) -> dict[str, object]:
    model = result.get("model") or {}
    weights = [tower.get("weights", "")[:12] for tower in (result.get("towers") or {}).values()]
    hashes = result.get("hashes") or {}
    value = _number(result["metrics"][metric])
    intervals = (result.get("details") or {}).get("intervals")
    known = intervals if isinstance(intervals, Mapping) else {}
    low, high = known.get(metric, (None, None))
    return {
        "target": cell.target,
        "run": model.get("run"),
        "checkpoint": model.get("checkpoint"),
        "step": model.get("step"),
        "weights": "+".join(weights),
        "suite": cell.suite,
        "dataset": cell.dataset,
        "split": result.get("split"),
        "protocol": result.get("protocol"),
        "metric": metric,
        "value": value,
        "chance": _number((result.get("chance") or {}).get(metric)),
        "low": low,
        "high": high,
        "num_items": result.get("num_items"),
        "rows": hashes.get("rows"),
        "classes": hashes.get("classes"),
        "key": cell.key,
        "seconds": result.get("seconds"),
        "status": "done",
        "error": None,
        "file": result.get("file"),
    }


def _failed_row(cell: Cell) -> dict[str, object]:
    failure = _read_failure(Path(cell.failure))
    return {
        **dict.fromkeys(LONG_FORM),
        "target": cell.target,
        "suite": cell.suite,
        "dataset": cell.dataset,
        "key": cell.key or None,
        "seconds": (failure or {}).get("seconds"),
        "status": "missing" if failure is None else "failed",
        "error": (failure or {}).get("error"),
        "file": None if failure is None else cell.failure,
    }


def _failures(cells: Iterable[Cell]) -> list[str]:
    """`runs/b: zero_shot dtd, knn dtd` for every target with cells that failed."""
    by_target: dict[str, list[str]] = {}
    for cell in cells:
        if Path(cell.failure).is_file():
            by_target.setdefault(cell.target, []).append(f"{cell.suite} {cell.dataset}")
    return [f"{target}: {', '.join(own)}" for target, own in by_target.items()]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
