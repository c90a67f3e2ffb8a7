"""`vlkd compare RUN...|FOLDER`: runs side by side, with spread over seeds and differences."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import RunsFolder


class At(StrEnum):
    """Which evaluation of each run counts."""

    best = "best"
    last = "last"


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...|FOLDER", help="Runs by folder or name, or a folder of runs."
        ),
    ],
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE.METRIC",
            help="What to compare; by default the metric of train.best, else the primary one.",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Group or run to compare with; by default the first."),
    ] = None,
    at: Annotated[
        At | None,
        typer.Option(help="Evaluation that counts; by default best where train.best names it."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write the table: .csv, .md, .tex or .json.")
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Compare runs: mean, standard deviation, interval, and paired difference to a baseline."""
    from vlkd_cli import console
    from vlkd_cli.engine.launching.run_folder import runs_of
    from vlkd_cli.reports import comparison_table as tables
    from vlkd_cli.reports.comparison import compare as compare_runs
    from vlkd_cli.reports.records import read_run

    if table is not None:
        tables.check_table(table)
    found = compare_runs(
        [read_run(path) for path in runs_of(targets, runs)],
        metric=metric,
        baseline=baseline,
        at=None if at is None else at.value,
    )
    chance = "" if found.chance is None else f", chance {found.chance:.4f}"
    console.print_table(
        f"{found.metric}, {found.at} evaluation{chance}",
        tables.columns_of(found),
        [tables.cells_of(found, row) for row in found.rows],
    )
    for note in found.notes:
        console.say(f"Note: {note}.")
    if table is not None:
        tables.write_comparison(table, found)
        console.say(f"Table: {table}")
