"""Compute what a table lacks, next to other processes that do the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from vlkd_cli import console
from vlkd_cli.claims import claimed
from vlkd_cli.engine.tables.plan import Model, Plan, data_of
from vlkd_cli.errors import UserError, ran_out_of_memory
from vlkd_cli.evaluation.datasets.collections import Entry
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import build_suite, chosen_by, run_suite, write_result
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.reports.table import Cell, find_result

Unit = tuple[Model, int, Entry]
"""A model on a data set, and the position of the data set."""


def compute(
    plan: Plan,
    models: Sequence[Model],
    entries: Sequence[Entry],
    specs: Sequence[EvalSpec],
    *,
    device: torch.device,
    started: float,
    redo: bool = False,
    first: int = 0,
) -> None:
    """Measure every cell that has no result yet, unit by unit: one model on one data set, whose
    suites share one pass over images and texts. Units that another process works on are left to
    it, and looked at again at the end, since it may have been killed; what fails is written down
    and the next unit follows.

    Args:
        started: when the command was given, in seconds since 1970; what failed before is tried
            again.
        redo: measure what was measured before as well.
        first: number of the model to begin with.
    """
    order = [*models[first % len(models) :], *models[: first % len(models)]]
    units = [
        (model, position, entry)
        for model in order
        for position, entry in enumerate(entries)
        if _missing(plan.of(model.number, position), redo, started)
    ]

    def compute_unit(unit: Unit, label: str) -> bool:
        return _compute_unit(plan, unit, specs, label, device, redo, started)

    left: list[Unit] = []
    for number, unit in enumerate(units, start=1):
        model, _, entry = unit
        label = f"[{number}/{len(units)}] {model.target.label} {entry.name}"
        if not compute_unit(unit, label):
            left.append(unit)
        if number == len(units) or units[number][0] is not model:
            model.drop()
    for unit in left:
        label = f"{unit[0].target.label} {unit[2].name}"
        compute_unit(unit, label)
        unit[0].drop()


def _compute_unit(
    plan: Plan,
    unit: Unit,
    specs: Sequence[EvalSpec],
    label: str,
    device: torch.device,
    redo: bool,
    started: float,
) -> bool:
    """Measure what a unit lacks; False where another process works on it."""
    model, position, entry = unit
    cells = plan.of(model.number, position)
    with claimed(_claim(cells)) as is_mine:
        # Another process may have measured them since.
        missing = _missing(cells, redo, started) if is_mine else []
        if missing:
            console.say(f"{label}: {_measure(model, entry, missing, specs, device)}")
    return is_mine


def _missing(cells: Sequence[Cell], redo: bool, started: float) -> list[Cell]:
    return [cell for cell in cells if not _is_done(cell, redo, started)]


def _is_done(cell: Cell, redo: bool, started: float) -> bool:
    """Whether a cell has a result, or another process of this command has just measured it or
    failed."""
    result = find_result(cell)
    if result is not None and not redo:
        return True
    file = cell.failure if result is None else result["file"]
    with contextlib.suppress(FileNotFoundError):
        return Path(file).stat().st_mtime >= started
    return False


def _claim(cells: Sequence[Cell]) -> Path:
    """The claim of a unit: equal for all processes that would write the same files."""
    names = sorted(cell.key or Path(cell.failure).name for cell in cells)
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]
    return Path(cells[0].folder) / f"{digest}.lock"


def _measure(
    model: Model,
    entry: Entry,
    cells: Sequence[Cell],
    specs: Sequence[EvalSpec],
    device: torch.device,
) -> str:
    """Measure the cells of a unit; what came out, in short."""
    lines: list[str] = []
    tables: OpenTables | None = None
    for cell in cells:
        begin = time.perf_counter()
        try:
            subject = model.subject()
            for tower in subject.towers.values():
                tower.to(device)
            before = subject.tables
            # Features of one data set at a time; digests and open data stay.
            tables = tables or replace(before, stores={}, projected={})
            own = replace(subject, device=device, tables=tables)
            result = _run(own, data_of(specs[cell.spec], entry))
            write_result(result, Path(cell.folder))
        # Whatever it is, the other cells must not wait for it; KeyboardInterrupt passes.
        except Exception as error:
            _note_failure(cell, error, time.perf_counter() - begin)
            line = " ".join(str(error).split()) or type(error).__name__
            lines.append(f"{cell.suite} failed: {console.without_secrets(line)}")
            continue
        Path(cell.failure).unlink(missing_ok=True)
        lines.append(_short(result))
    return ", ".join(lines)


def _run(subject: Subject, spec: EvalSpec) -> Result:
    chosen = chosen_by(spec, subject)
    try:
        found = run_suite(build_suite(spec, chosen), spec, chosen)
    except (MemoryError, RuntimeError) as error:
        if not ran_out_of_memory(error) or chosen.batch_size < 2:
            raise
        if chosen.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = replace(chosen, batch_size=chosen.batch_size // 2)
        found = run_suite(build_suite(spec, smaller), spec, smaller)
    if len(found) != 1:
        raise UserError(
            f"suite '{spec.suite}' gives {len(found)} results for one data set, and a cell holds"
            " one. Run it without --table."
        )
    return found[0]


def _short(result: Result) -> str:
    name = result.primary_metric
    chance = f" (chance {result.chance[name]:.3f})" if name in result.chance else ""
    return f"{result.name} {name} {result.metrics[name]:.3f}{chance}"


def _note_failure(cell: Cell, error: Exception, seconds: float) -> None:
    path = Path(cell.failure)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "error": console.without_secrets(" ".join(str(error).split()) or type(error).__name__),
        "type": type(error).__name__,
        "traceback": console.without_secrets("".join(traceback.format_exception(error))),
        "seconds": seconds,
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
