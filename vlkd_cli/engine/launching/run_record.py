"""What is written about a run as a whole by the process that started it, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlkd_cli import console
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.reports.state import StateFile


@dataclass
class Record:
    """How the run ended: 0, or the number of the signal that stopped it."""

    status: int = 0


@contextlib.contextmanager
def recorded(folder: Path, *, resumed: bool, first: bool, report: bool = False) -> Iterator[Record]:
    """Maintain `state.json` during a run and write its report page at the end, also of a failed
    run.

    Args:
        folder: the run's folder, which exists.
        resumed: the run continues from a checkpoint.
        first: whether this process speaks for the run; others write nothing.
        report: write `report.html`; one that cannot be written costs a warning.
    """
    record = Record()
    if not first:
        yield record
        return
    StateFile(folder).begin(resumed=resumed)
    try:
        yield record
    except Exception as error:
        cause = console.without_secrets(str(error) or type(error).__name__)
        StateFile(folder).end("failed", cause.strip())
        if report:
            _write_page(folder)
        raise
    # Read again: a worker has written how far it came.
    StateFile(folder).end("stopped" if record.status else "finished")
    if report:
        _write_page(folder)


def asks_for_report(recipe: Recipe) -> bool:
    """Whether `reports:` names the page."""
    return "html" in {r if isinstance(r, str) else r.name for r in recipe.reports}


def _write_page(folder: Path) -> None:
    from vlkd_cli.reports.html.write import write_report

    try:
        console.say(f"Report: {write_report([folder])}")
    except UserError as error:
        console.warn(str(error))
