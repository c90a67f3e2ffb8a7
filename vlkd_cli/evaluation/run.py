"""Run suites on what was trained, print and store the results."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.distributed.collectives import broadcast_object
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Suite
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.numerics.directions import lower_is_better
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.recipe.types import MODALITY_NAMES
from vlkd_cli.whole_file import whole_file


def run_suites(
    subject: Subject, specs: Sequence[EvalSpec], *, folder: Path | None = None
) -> list[Result]:
    """Every suite in turn; they share the features of `subject`. The same list on every rank.

    Args:
        subject: the towers and the means.
        specs: which suites with which keys.
        folder: where each result is written as JSON by rank 0; None writes nothing.

    Raises:
        RecipeError: a suite is unknown, needs a tower that is missing, or takes other keys. Raised
            before the first suite runs.
    """
    known = subject.tables
    shared = replace(
        subject, tables=OpenTables(datasets=known.datasets, fingerprints=known.fingerprints)
    )
    chosen = [chosen_by(spec, shared) for spec in specs]
    suites = [build_suite(spec, own) for spec, own in zip(specs, chosen, strict=True)]
    results: list[Result] = []
    for spec, suite, own in zip(specs, suites, chosen, strict=True):
        for result in run_suite(suite, spec, own):
            results.append(_distinct(result, results))
            if folder is not None and is_main():
                write_result(results[-1], folder)
    return results


def run_suite(suite: Suite, spec: EvalSpec, subject: Subject) -> list[Result]:
    """What one suite measures, the same on every rank."""
    begin = time.perf_counter()
    # Rank 0's results: what a library computes may differ in the last bit from machine to machine.
    found = broadcast_object(suite.run(subject))
    seconds = time.perf_counter() - begin
    width = {} if spec.width is None else {"width": spec.width}
    return [
        replace(
            result,
            name=spec.title,
            suite=spec.suite,
            seconds=seconds,
            settings={**result.settings, **width},
        )
        for result in found
    ]


def chosen_by(spec: EvalSpec, subject: Subject) -> Subject:
    """The subject with the tower and at the width that an entry of `evals:` asks for.

    Raises:
        RecipeError: there is no such tower, or it gives fewer values.
    """
    return with_tower(subject, spec.tower).at_width(spec.width)


def with_tower(subject: Subject, name: str | None) -> Subject:
    """The subject with the named tower as the one of its modality.

    Raises:
        RecipeError: there is no such tower.
    """
    if name is None:
        return subject
    if name not in subject.towers:
        raise RecipeError(
            f"evals: no tower '{name}'.{did_you_mean(name, subject.towers)} Towers:"
            f" {', '.join(subject.towers)}."
        )
    return subject.with_tower(subject.towers[name])


def build_suite(spec: EvalSpec, subject: Subject) -> Suite:
    """The suite of an `evals:` entry, once it is certain that the towers it needs are there.

    Raises:
        RecipeError: see `run_suites`.
    """
    suite: Suite = make("suite", spec.suite, spec.keys)
    have = {name for name in MODALITY_NAMES if subject.tower(name) is not None}
    if not have:
        raise RecipeError(
            f"suite '{spec.suite}' needs a tower, and there is none for"
            f" {' or '.join(sorted(suite.modalities or MODALITY_NAMES))}."
        )
    missing = sorted(suite.modalities - have)
    if missing:
        needs = " and ".join(sorted(suite.modalities))
        raise RecipeError(
            f"suite '{spec.suite}' needs towers for {needs}, and there is none for"
            f" {' or '.join(missing)}."
        )
    return suite


def write_result(result: Result, folder: Path) -> Path:
    """Write a result as `STEM.json` (`Result.file_stem`), with what belongs to its items in
    `.items.npz` and `.map.npz` files of that name; an earlier file is replaced at once or not at
    all.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / f"{result.file_stem}.json"
    arrays = {
        "items": result.items,
        "map": None if result.shown is None else result.shown.to_arrays(),
    }
    try:
        for kind, content in arrays.items():
            if content is not None:
                target = folder / f"{result.file_stem}.{kind}.npz"
                with whole_file(target) as partial, partial.open("wb") as file:
                    # As Any: numpy 2 has another parameter after the arrays, numpy 1 has none.
                    named: dict[str, Any] = dict(content)
                    np.savez_compressed(file, **named)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: the result cannot be written: {error.strerror}. Choose another folder or make"
            " room."
        ) from error
    return path


class Stored(NamedTuple):
    """What a table shows of a result, as its file has it."""

    name: str
    dataset: str
    split: str
    metrics: Mapping[str, float | None]
    chance: Mapping[str, float]


def stored_results(folder: Path) -> list[Stored]:
    """What `write_result` wrote to a folder, the oldest first; empty where there is no such folder.
    A file that is damaged does not count."""
    found = []
    for file in sorted(folder.glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            result = read_json(file)
            names = (str(result["name"]), str(result["dataset"]), str(result["split"]))
            found.append(Stored(*names, dict(result["metrics"]), dict(result["chance"])))
    return found


def stored_metrics(folder: Path) -> dict[tuple[str, str, str], float | None]:
    """Values of `stored_results` by name, data set and metric."""
    return {
        (result.name, result.dataset, str(metric)): value
        for result in stored_results(folder)
        for metric, value in result.metrics.items()
    }


def print_results(
    results: Sequence[Result | Stored],
    before: Mapping[tuple[str, str, str], float | None] = MappingProxyType({}),
    references: Container[str] = frozenset(),
) -> None:
    """One table: a line per metric, with the value that a random encoder would reach next to it.

    Args:
        before: values before training, by name, data set and metric; where there are any, they and
            the change are shown too.
        references: names of results of which the table also shows how much was retained: the
            distance from chance as a fraction of what it was, or a dash where it was none.
    """
    rows = []
    shows_retained = any(result.name in references for result in results)
    starts_at_chance = False
    for result in results:
        for metric, value in result.metrics.items():
            start = before.get((result.name, result.dataset, metric))
            chance = result.chance.get(metric)
            row = [result.name, result.dataset, result.split, metric]
            row += [_number(start), _number(value), _change(start, value)] if before else []
            row += [] if before else [_number(value)]
            if shows_retained:
                shown = _retained(metric, start, value, chance)
                row.append(shown if result.name in references else "")
                starts_at_chance |= row[-1] == NOT_RETAINED
            rows.append([*row, _number(chance)])
    values = ["before", "after", "change"] if before else ["value"]
    retained_column = ["retained"] if shows_retained else []
    columns = ["suite", "data", "split", "metric", *values, *retained_column, "chance"]
    console.print_table("Results", columns, rows)
    if starts_at_chance:
        console.say(f"retained {NOT_RETAINED}: no better than chance before training.")


NOT_RETAINED = "-"
"""What the table shows where there was nothing to retain."""


def retained_fraction(
    metric: str, start: float | None, end: float | None, chance: float | None
) -> float | None:
    """(end - chance) / (start - chance); None where one of them is not known, or the start is no
    better than chance: a fraction of nothing, or of a distance in the wrong direction."""
    if start is None or end is None or chance is None:
        return None
    is_better = start < chance if lower_is_better(metric) else start > chance
    return (end - chance) / (start - chance) if is_better else None


def _retained(metric: str, start: float | None, end: float | None, chance: float | None) -> str:
    fraction = retained_fraction(metric, start, end, chance)
    if fraction is not None:
        return f"{fraction:.1%}"
    return "" if start is None or end is None or chance is None else NOT_RETAINED


def _distinct(result: Result, before: Sequence[Result]) -> Result:
    """The result, its data numbered where the metrics of an earlier one have the same names; a
    `name:` of the entry or of its data gives better ones."""
    taken = {(other.name, other.dataset) for other in before}
    numbered, number = result, 1
    while (numbered.name, numbered.dataset) in taken:
        number += 1
        numbered = replace(result, dataset=f"{result.dataset}_{number}")
    return numbered


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ""
    change = after - before
    return f"{change:+.4f}" if abs(change) < 100 else f"{change:+,.1f}"
