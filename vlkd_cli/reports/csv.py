"""The record: every logged value as one row of `metrics.csv`."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from vlkd_cli import console
from vlkd_cli.errors import CheckpointError
from vlkd_cli.reports.sink import Sink

FILE = "metrics.csv"
HEADER = ("step", "name", "value")


class Row(NamedTuple):
    """One logged value."""

    step: int
    name: str
    value: float


class CSVSink(Sink):
    """Rows of step, name, value in `metrics.csv` of the run folder; other sinks are views of it.

    Opened on a resumed run, it drops the rows after the step that the run continues from. The
    shortened file replaces the former one when it is whole, so a kill at that moment loses nothing.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__(folder, resume_step)
        self._path = folder / FILE
        try:
            if resume_step is None or not self._path.exists():
                self._write_partial(()).replace(self._path)
            else:
                self._shorten(resume_step)
            self._file = self._path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self._path, error) from error
        self._writer = csv.writer(self._file)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row per value.

        Raises:
            CheckpointError: the disk is full or gone.
        """
        try:
            self._writer.writerows(
                (step, name, repr(float(value))) for name, value in values.items()
            )
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def finish(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _shorten(self, last_step: int) -> None:
        damaged: list[int] = []
        number = 1

        def retained() -> Iterator[Row]:
            nonlocal number
            for number, row in enumerate(_parse(self._path), start=2):
                if row is None:
                    damaged.append(number)
                elif row.step <= last_step:
                    yield row

        partial = self._write_partial(retained())
        # A line that a kill cut off is the last one; anything else is damage that is worth a look.
        if damaged and damaged != [number]:
            backup = self._path.with_suffix(".damaged.csv")
            self._path.replace(backup)
            console.warn(
                f"{self._path}: line {damaged[0]} is not step,name,value ({len(damaged)} such"
                f" lines). The readable rows were recovered; the original file is {backup}."
            )
        partial.replace(self._path)

    def _write_partial(self, rows: Iterable[Row]) -> Path:
        partial = self._path.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            writer.writerows((step, name, repr(value)) for step, name, value in rows)
            file.flush()
            os.fsync(file.fileno())
        return partial


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The record of a run folder: name -> [(step, value), ...] in the order of steps; of a step
    logged twice the later value. Lines that are not rows are passed over.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    series: dict[str, dict[int, float]] = {}
    try:
        for row in _parse(folder / FILE):
            if row is not None:
                series.setdefault(row.name, {})[row.step] = row.value
    except OSError as error:
        raise CheckpointError(
            f"{folder / FILE} cannot be read: {error.strerror or error}. Name the folder of a run."
        ) from error
    return {name: sorted(values.items()) for name, values in series.items()}


def _parse(path: Path) -> Iterator[Row | None]:
    """The rows below the header; None for a line that is not one."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file):
            if number > 0 or not line.startswith(",".join(HEADER)):
                yield _row(line)


def _row(line: str) -> Row | None:
    try:
        step, name, value = next(csv.reader([line]))
        return Row(int(step), name, float(value))
    # Other bytes, another number of fields, a field beyond the csv module's limit, no number.
    except (ValueError, csv.Error, StopIteration):
        return None


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write {path}: {error.strerror or error}. Free space or remove the file that"
        " blocks it, then continue with --resume."
    )
