"""`vlkd report RUN...`: a page that shows a run, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import RunsFolder


def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="One run, or several to compare; a folder of runs means all of them.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to write the page; by default report.html in the run, or comparison.html"
            " next to the first of several.",
        ),
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Write one HTML file with curves, results, pictures, recipe and versions."""
    from vlkd_cli import console
    from vlkd_cli.engine.launching.run_folder import runs_of
    from vlkd_cli.errors import UserError
    from vlkd_cli.reports.html.write import write_report

    if output is not None and output.is_dir():
        raise UserError(f"-o {output} is a folder; name a file, e.g. {output}/report.html.")
    console.say(f"Report: {write_report(runs_of(targets, runs), output)}")
