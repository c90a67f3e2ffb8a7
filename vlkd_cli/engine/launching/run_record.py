"""What is written about a run as a whole by the process that started it, however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlkd_cli.reports.state import StateFile


@dataclass
class Record:
    """How the run ended: 0, or the number of the signal that stopped it."""

    status: int = 0


@contextlib.contextmanager
def recorded(folder: Path, *, resumed: bool, first: bool) -> Iterator[Record]:
    """Keep `state.json` around a run, failed ones included.

    Args:
        folder: the run's folder, which exists.
        resumed: the run continues from a checkpoint.
        first: whether this process speaks for the run; others write nothing.
    """
    record = Record()
    if not first:
        yield record
        return
    StateFile(folder).begin(resumed=resumed)
    try:
        yield record
    except Exception as error:
        StateFile(folder).end("failed", (str(error) or type(error).__name__).strip())
        raise
    # Read again: a worker has written how far it came.
    StateFile(folder).end("stopped" if record.status else "finished")
