"""Why samples of a table of features could not be read; which they are is marked in the table."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.data.batch import Skipped

BROKEN = "broken.csv"


def note_broken(folder: Path, broken: Mapping[int, Skipped]) -> None:
    """Note names and reasons by row, next to a table."""
    if broken:
        with (folder / BROKEN).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((row, *skipped) for row, skipped in broken.items())


def noted_broken(folder: Path) -> dict[int, Skipped]:
    """Names and reasons by row. Lines that are cut off or damaged are left out: which samples are
    broken is known from the table."""
    try:
        lines = (folder / BROKEN).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    found: dict[int, Skipped] = {}
    for line in lines:
        with contextlib.suppress(csv.Error, ValueError):
            row, name, reason = next(csv.reader([line]))
            found[int(row)] = Skipped(name, reason)
    return found
