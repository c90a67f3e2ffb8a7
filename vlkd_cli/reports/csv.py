"""The record: every logged value as one row of `metrics.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.reports.sink import Sink


class CSVSink(Sink):
    """Rows of step, name, value in `metrics.csv` of the run folder; other sinks are views of it.

    Opened on a resumed run, it drops the rows after the step that the run continues from.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__(folder, resume_step)
        path = folder / "metrics.csv"
        kept = _rows_until(path, resume_step) if resume_step is not None and path.is_file() else []
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerows([("step", "name", "value"), *kept])
        self._file.flush()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._writer.writerows((step, name, repr(float(value))) for name, value in values.items())
        self._file.flush()

    def finish(self) -> None:
        self._file.close()


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The record of a run folder: name -> [(step, value), ...] in the order logged; a step logged
    twice keeps the later value."""
    series: dict[str, dict[int, float]] = {}
    for step, name, value in _rows_until(folder / "metrics.csv", None):
        series.setdefault(name, {})[int(step)] = float(value)
    return {name: sorted(values.items()) for name, values in series.items()}


def _rows_until(path: Path, last_step: int | None) -> list[tuple[str, str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [
            (row[0], row[1], row[2])
            for row in csv.reader(file)
            if len(row) == 3 and row[0].isdigit()
        ]
    return [row for row in rows if last_step is None or int(row[0]) <= last_step]
