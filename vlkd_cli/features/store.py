"""Rows of features that are computed once: in a folder, memory-mapped and resumable, or in memory
where there is no folder."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.errors import DataError
from vlkd_cli.numerics.npy import load_npy


class FeatureStore:
    """A table `[rows, width]` float32 with a mark per finished row.

    On disk it is a folder with `features.npy` and `done.npy`. Rows are marked only after their
    values were written, so whatever interrupts the writer leaves a table that can be continued.
    Values are written through the file, not through the mapping: a full disk is then an error that
    can be reported instead of a bus error.
    """

    def __init__(self, folder: Path | None, rows: int, width: int) -> None:
        self.folder = folder
        self.rows = rows
        self.width = width
        if folder is None:
            self._features = np.zeros((rows, width), dtype=np.float32)
            self.done = np.zeros(rows, dtype=np.uint8)
            return
        try:
            self._open(folder)
        except OSError as error:
            raise _no_room(folder, error) from error

    def _open(self, folder: Path) -> None:
        if not self._fits(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            # Files of zeros are sparse: a table costs room only where it is filled.
            np.lib.format.open_memmap(
                fresh / "features.npy", mode="w+", dtype=np.float32, shape=(self.rows, self.width)
            ).flush()
            np.lib.format.open_memmap(
                fresh / "done.npy", mode="w+", dtype=np.uint8, shape=(self.rows,)
            ).flush()
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.rename(fresh, folder)
            except OSError:
                # Another process was faster with the same table; its values are the same.
                shutil.rmtree(fresh, ignore_errors=True)
                if not self._fits(folder):
                    raise
        self._features = load_npy(folder / "features.npy", mmap_mode="c")
        self.done = np.array(load_npy(folder / "done.npy", mmap_mode="r"))
        self._start = {name: _data_start(folder / name) for name in ("features.npy", "done.npy")}

    def _fits(self, folder: Path) -> bool:
        """Whether a table of this shape lies there; a damaged one is made anew."""
        try:
            features = load_npy(folder / "features.npy", mmap_mode="r")
            done = load_npy(folder / "done.npy", mmap_mode="r")
        except (OSError, ValueError):
            return False
        shapes = (features.shape, done.shape)
        return shapes == ((self.rows, self.width), (self.rows,)) and bool(
            features.dtype == np.float32
        )

    def write(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Fill rows and mark them.

        Args:
            indices: the rows, `[n]`, each once.
            values: their features, `[n, width]`.
        """
        if self.folder is None:
            self._features[indices] = values
            self.done[indices] = 1
            return
        order = np.argsort(indices, kind="stable")
        indices, values = indices[order], np.ascontiguousarray(values[order], dtype=np.float32)
        breaks = np.flatnonzero(np.diff(indices) != 1) + 1
        runs = list(zip(np.split(indices, breaks), np.split(values, breaks), strict=True))
        try:
            with open(self.folder / "features.npy", "r+b") as file:
                for rows, block in runs:
                    file.seek(self._start["features.npy"] + int(rows[0]) * self.width * 4)
                    file.write(block.tobytes())
                file.flush()
                os.fsync(file.fileno())
            with open(self.folder / "done.npy", "r+b") as file:
                for rows, _ in runs:
                    file.seek(self._start["done.npy"] + int(rows[0]))
                    file.write(b"\x01" * len(rows))
        except OSError as error:
            raise _no_room(self.folder, error) from error
        self.done[indices] = 1

    def table(self) -> NDArray[np.float32]:
        """All rows; on disk a copy-on-write mapping, so nobody can spoil the file."""
        if self.folder is None:
            return self._features
        features: np.ndarray = load_npy(self.folder / "features.npy", mmap_mode="c")
        return features


def _data_start(path: Path) -> int:
    """Where a .npy file's values begin."""
    return int(load_npy(path, mmap_mode="r").offset)


def _no_room(folder: Path, error: OSError) -> DataError:
    reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
    return DataError(
        f"{folder}: features cannot be kept here: {reason}. Make room or choose another folder with"
        " VLKD_CACHE."
    )
