"""From the words of `vlkd eval A B C --table FILE` to the table: everything is checked before the
first cell."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.launch import quieten_libraries
from vlkd_cli.engine.launching.suite_specs import suite_specs
from vlkd_cli.engine.launching.targets import Target, targets_of
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.datasets.collections import Entry, absent, entries_of, groups_of
from vlkd_cli.recipe.evaluation_data import reads_data_sets
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.reports.comparison_table import check_table
from vlkd_cli.reports.table import Cell, Table, find_result, make_table
from vlkd_cli.reports.table_files import Layout, shown_rows, write_table
from vlkd_cli.whole_file import whole_file

FAILED_CELLS = 1
"""Exit code where the table has cells that failed."""


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """What `vlkd eval` was asked for; `commands/evaluate.py` explains each option."""

    targets: Sequence[str]
    suites: Sequence[str]
    datasets: Sequence[str]
    suite_settings: Sequence[str] = ()
    overrides: Sequence[str] = ()
    data_root: Path | None = None
    table: Path | None = None
    layout: Layout = "wide"
    metrics: Sequence[str] = ("primary",)
    digits: int = 3
    jobs: int = 1
    redo: bool = False
    missing: Literal["refuse", "leave_out"] = "refuse"
    only_list: bool = False
    device: Literal["auto", "cpu"] = "auto"
    runs: Path = Path("runs")
    trust: bool = False
    started: float = field(default_factory=time.time)
    """In seconds since 1970, the same for all processes of --jobs."""


def start_table(request: TableRequest) -> int:
    """Compute what the table lacks and write it.

    Returns:
        0, 1 where cells failed, or 128 and the number of the signal that stopped it.
    """
    quieten_libraries()
    if request.table is not None:
        check_table(request.table)
    targets, entries, specs = _checked(request)
    if request.jobs > 1 and not request.only_list:
        cells, status = _in_processes(request)
    else:
        cells, status = compute_cells(request, targets, entries, specs)
    if request.only_list:
        _print_list(cells)
        return 0
    if not cells:  # stopped before they were known; an earlier table stays
        return status
    table = make_table(cells, request.metrics, groups_of(request.datasets))
    _report(request, cells, table)
    return status or (FAILED_CELLS if table.failures else 0)


def _checked(
    request: TableRequest, *, warns: bool = True
) -> tuple[list[Target], list[Entry], list[EvalSpec]]:
    """What is meant, once all of it is certain to exist."""
    if not request.suites:
        raise UserError("a table needs --suite NAME[,NAME...]: every model is measured alike.")
    for name in request.suites:
        if request.suites.count(name) > 1:
            raise UserError(f"--suite {','.join(request.suites)}: '{name}' is given twice.")
        try:
            signature_of("suite", name)
        except RecipeError as error:
            raise UserError(f"--suite: {error}") from error
        if not reads_data_sets(name):
            raise UserError(
                f"--suite {name}: has data of its own and no column per data set. Run it for each"
                f" model: `vlkd eval MODEL --suite {name}`."
            )
    if request.data_root is not None and not request.data_root.is_dir():
        raise UserError(f"--data {request.data_root}: no such folder.")
    if not request.datasets:
        raise UserError(
            "a table needs --datasets NAME[,NAME...]: data sets below --data, `all`, a collection,"
            " or FILE.yaml:LIST."
        )
    entries = entries_of(request.datasets, request.data_root)
    gone = absent(entries, request.data_root)
    if gone and (request.missing == "refuse" or len(gone) == len(entries)):
        where = f"below {request.data_root}" if request.data_root else "found; give --data ROOT"
        names = ", ".join(entry.name for entry in gone)
        raise UserError(
            f"--datasets: not {where}: {names}. Leave them out, or add --missing leave_out for a"
            " table without them."
        )
    entries = [entry for entry in entries if entry not in gone]
    if gone and warns:
        console.warn(f"Left out, not there: {', '.join(entry.name for entry in gone)}.")
    targets = targets_of(request.targets, request.overrides, request.runs, request.trust)
    # No keys of the recipes' own evaluations: every model is measured alike.
    bare = targets[0].recipe.model_copy(update={"evals": []})
    specs = suite_specs(
        bare, request.suites, request.suite_settings, request.data_root, has_data=True
    )
    return targets, entries, specs


def compute_cells(
    request: TableRequest,
    targets: Sequence[Target],
    entries: Sequence[Entry],
    specs: Sequence[EvalSpec],
    first: int = 0,
    plan_file: Path | None = None,
) -> tuple[list[Cell], int]:
    """Plan, and compute what is missing, in this process; the cells, and the exit code of a signal
    that stopped it.

    Args:
        first: number of the model to begin with, of processes that share the cells.
        plan_file: where the cells are written before the first is computed.
    """
    import torch

    from vlkd_cli.distributed import runtime
    from vlkd_cli.engine.tables.compute import compute
    from vlkd_cli.engine.tables.plan import Model, make_plan
    from vlkd_cli.features.subject import OpenTables

    device = runtime.pick_device(request.device)
    shared = OpenTables()
    models = [
        Model(number, target, request.data_root, shared) for number, target in enumerate(targets)
    ]
    with Interruption().watched() as interruption:
        plan = None
        try:
            with interruption.dropping(), torch.no_grad():
                plan = make_plan(models, entries, specs)
                if plan_file is not None:
                    _write_cells(plan_file, plan.cells)
                if not request.only_list:
                    if first == 0:
                        _say_plan(plan.cells, request.redo, request.started)
                    compute(
                        plan,
                        models,
                        entries,
                        specs,
                        device=device,
                        started=request.started,
                        redo=request.redo,
                        first=first,
                    )
        except Interrupted:
            console.say("Stopped. Finished cells are saved; run the same command to resume.")
            return ([] if plan is None else plan.cells), 128 + (interruption.signal_number or 2)
    return plan.cells, 0


def _in_processes(request: TableRequest) -> tuple[list[Cell], int]:
    """N processes that share the cells; their plans are equal, and one of them is the table's."""
    context = multiprocessing.get_context("spawn")
    threads = str(max(1, (os.cpu_count() or 1) // request.jobs))
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    with tempfile.TemporaryDirectory(prefix="vlkd-table-") as folder:
        plans = [Path(folder) / f"cells-{number}.json" for number in range(request.jobs)]
        processes = [
            context.Process(target=_job, args=(request, number, plan))
            for number, plan in enumerate(plans)
        ]

        def send(number: int) -> None:
            for process in processes:
                if process.pid is not None and process.is_alive():
                    os.kill(process.pid, number)

        with Interruption().passed_on(send) as interruption:
            for process in processes:
                process.start()
            for process in processes:
                process.join()
        plan = next((path for path in plans if path.is_file()), None)
        cells = [] if plan is None else _read_cells(plan)
    codes = [process.exitcode or 0 for process in processes]
    if interruption.signal_number:
        return cells, 128 + interruption.signal_number
    if plan is None and not any(code < 0 for code in codes):
        raise UserError("the processes of --jobs ended before the first cell; see above.")
    return cells, max(map(_exit_code, codes))


def _exit_code(code: int) -> int:
    """Of a process of --jobs; one that was killed is reported."""
    if code >= 0:
        return code
    console.warn(
        f"A process of --jobs was killed by signal {-code}"
        f"{': memory may have run out' if -code == signal.SIGKILL else ''}. The same command"
        " computes what is missing."
    )
    return 128 - code


def _job(request: TableRequest, number: int, plan: Path) -> None:
    quieten_libraries()
    devices = _devices()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    try:
        _, status = compute_cells(request, *_checked(request, warns=False), number, plan)
    except UserError as error:
        console.error(str(error))
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    raise SystemExit(status)


def _write_cells(path: Path, cells: Sequence[Cell]) -> None:
    """All of them or nothing: the process may be killed any time."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(cells), encoding="utf-8")


def _read_cells(path: Path) -> list[Cell]:
    return [Cell(*values) for values in read_json(path)]


def _devices() -> list[str]:
    """The visible GPUs by the names that CUDA_VISIBLE_DEVICES has for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _say_plan(cells: Sequence[Cell], redo: bool, started: float) -> None:
    done = 0 if redo else sum(_is_older(cell, started) for cell in cells)
    models = len({cell.model for cell in cells})
    sets = len({cell.entry for cell in cells})
    console.say(
        f"{_count(len(cells), 'cell')}: {done} done before, {len(cells) - done} to compute"
        f" ({_count(models, 'model')}, {_count(sets, 'data set')})"
    )


def _is_older(cell: Cell, started: float) -> bool:
    """Whether a cell was measured before the command was given; another process of --jobs may have
    measured it since."""
    result = find_result(cell)
    return result is not None and Path(result["file"]).stat().st_mtime < started


def _print_list(cells: Sequence[Cell]) -> None:
    rows = [
        [
            cell.target,
            cell.dataset,
            cell.suite,
            cell.key or "-",
            "done"
            if find_result(cell)
            else ("failed" if Path(cell.failure).is_file() else "missing"),
        ]
        for cell in cells
    ]
    console.print_table("Cells", ["target", "data", "suite", "key", "state"], rows)


def _report(request: TableRequest, cells: Sequence[Cell], table: Table) -> None:
    head, rows = shown_rows(table, request.digits)
    console.print_table("Results", head, rows)
    for note in table.notes:
        console.say(f"Note: {note}.")
    unknown = [
        name
        for name in request.metrics
        if name not in ("primary", "headline", "all")
        and all(row["metric"] != name for row in table.rows)
    ]
    for name in unknown:
        console.warn(
            f"--metrics {name}: no result has it, so it has no column."
            f"{did_you_mean(name, _metrics_of(cells))}"
        )
    ending = ""
    if request.table is not None:
        write_table(request.table, table, layout=request.layout, digits=request.digits)
        ending = f"Table: {request.table}. "
    failed = sum(row["status"] == "failed" for row in table.rows)
    missing = sum(row["status"] == "missing" for row in table.rows)
    if failed:
        ending += (
            f"{failed} of {_count(len(cells), 'cell')} failed ({'; '.join(table.failures)}); the"
            " same command tries them again. "
        )
    if missing:
        ending += f"{_count(missing, 'cell')} not measured yet: other processes, or a stop. "
    if ending:
        console.say(ending.strip())


def _metrics_of(cells: Sequence[Cell]) -> list[str]:
    """The names of all metrics of the cells' results."""
    results = [result for cell in cells if (result := find_result(cell)) is not None]
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
