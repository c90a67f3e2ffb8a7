"""Rows of features that are computed once: in a folder, memory-mapped and resumable, or in memory
where there is no folder."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.cache_folder import make_folder
from vlkd_cli.errors import DataError
from vlkd_cli.numerics.bfloat16 import as_bfloat16, as_float32
from vlkd_cli.numerics.npy import load_npy
from vlkd_cli.recipe.types import TableType

FEATURES, CHECKS = "features.npy", "checks.npy"
_DONE, _BROKEN = np.uint64(1), np.uint64(3)
_STATE = np.uint64(3)
"""The bits of a check that hold a row's state: 0, _DONE, or _BROKEN."""
_ROWS_AT_ONCE = 2048


class FeatureStore:
    """A table `[rows, width]` of float32 or bfloat16 with a check for each finished row.

    On disk it is a folder with `features.npy` and `checks.npy`. A row's check is written after its
    values, so whatever interrupts the writer leaves a table that can be continued. Values are
    written through the file, not through the mapping: a full disk is then an error that can be
    reported instead of a bus error. A row whose values do not agree with its check (zeros, NaN,
    rows of another table: a damaged disk, a copy that was cut off) counts as not finished.

    Args:
        folder: of the files; None: in memory. Where it holds a table that is unfinished or damaged
            and that this user cannot write, a folder of the user's own next to it is used.
        rows: of the table.
        width: of the table.
        dtype: of the values on the disk; in memory they are float32. NumPy has no bfloat16, so its
            file holds uint16.
        verify: compare every finished row with its check, which reads the whole table. The first
            process of a machine does it for all.

    Raises:
        DataError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path | None,
        rows: int,
        width: int,
        *,
        dtype: TableType = "float32",
        verify: bool = True,
    ) -> None:
        self.dtype = np.dtype(np.uint16 if dtype == "bfloat16" else np.float32)
        self.folder, self.rows, self.width = folder, rows, width
        self.done = np.zeros(rows, dtype=np.uint8)
        self.broken = np.zeros(rows, dtype=np.bool_)
        self._features = np.zeros((0 if folder else rows, width), dtype=np.float32)
        if folder is None:
            return
        try:
            self.folder = self._open(folder, verify)
            self._start = {name: _data_start(self.folder / name) for name in (FEATURES, CHECKS)}
            self._read_checks(verify)
        except OSError as error:
            raise _no_room(folder, error) from error

    def _open(self, folder: Path, verify: bool) -> Path:
        """The folder with a table of this shape; one that is missing or damaged is made."""
        own = folder.with_name(f"{folder.name}-{os.getuid()}")
        if self._fits(own):
            return own
        if not self._fits(folder):
            try:
                return self._create(folder)
            except OSError:
                if not folder.exists():
                    raise
                return self._create(own)  # a damaged one that only its owner can replace
        if os.access(folder / FEATURES, os.W_OK) or self._serves_readers(folder, verify):
            return folder
        return self._create(own)

    def _create(self, folder: Path) -> Path:
        make_folder(folder.parent)
        fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        make_folder(fresh)
        try:
            # Files of zeros are sparse: a table costs room only where it is filled.
            for name, dtype, shape in (
                (FEATURES, self.dtype, (self.rows, self.width)),
                (CHECKS, np.uint64, (self.rows,)),
            ):
                np.lib.format.open_memmap(fresh / name, mode="w+", dtype=dtype, shape=shape).flush()
                os.chmod(fresh / name, fresh.stat().st_mode & 0o666)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(fresh, folder)
        except OSError:
            # Another process may have been faster with the same table; its values are the same.
            if not self._fits(folder):
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return folder

    def _fits(self, folder: Path) -> bool:
        try:
            features = load_npy(folder / FEATURES, mmap_mode="r")
            checks = load_npy(folder / CHECKS, mmap_mode="r")
        except (OSError, ValueError):
            return False
        return (features.shape, features.dtype, checks.shape, checks.dtype) == (
            (self.rows, self.width),
            self.dtype,
            (self.rows,),
            np.uint64,
        )

    def _serves_readers(self, folder: Path, verify: bool) -> bool:
        """Whether a table that this user cannot write needs no writing: it is complete."""
        checks = np.array(load_npy(folder / CHECKS, mmap_mode="r"))
        return bool((checks & _STATE).all()) and not (verify and self._wrong(folder, checks).any())

    def _wrong(self, folder: Path, checks: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Finished rows whose values do not agree with their check, `[rows]`."""
        table = load_npy(folder / FEATURES, mmap_mode="r")
        wrong = np.zeros(self.rows, dtype=np.bool_)
        finished = np.flatnonzero(checks & _STATE)
        for start in range(0, len(finished), _ROWS_AT_ONCE):
            block = finished[start : start + _ROWS_AT_ONCE]
            wrong[block] = _sums(block, table[block]) != checks[block] & ~_STATE
        return wrong

    def _read_checks(self, verify: bool) -> None:
        assert self.folder is not None
        checks = np.array(load_npy(self.folder / CHECKS, mmap_mode="r"))
        if verify and (wrong := self._wrong(self.folder, checks)).any():
            console.warn(
                f"{self.folder}: {int(wrong.sum())} of {np.count_nonzero(checks & _STATE)} cached"
                " rows are damaged and are computed again."
            )
            checks[wrong] = 0
            # For the other processes of this machine, which do not verify.
            self._write_checks(np.flatnonzero(wrong), checks[wrong])
        self.done = is_done(checks).astype(np.uint8)
        self.broken = is_broken(checks)

    def write(
        self,
        indices: NDArray[np.int64],
        values: NDArray[np.float32],
        broken: NDArray[np.bool_] | None = None,
    ) -> None:
        """Fill rows and mark them.

        Args:
            indices: the rows, `[n]`, each once.
            values: their features, `[n, width]`.
            broken: `[n]`, which of them belong to inputs that cannot be read.
        """
        broken = np.zeros(len(indices), dtype=np.bool_) if broken is None else broken
        if self.folder is None:
            self._features[indices] = values
        else:
            order = np.argsort(indices, kind="stable")
            rows = indices[order]
            stored: np.ndarray = np.ascontiguousarray(values[order], dtype=np.float32)
            if self.dtype == np.uint16:
                stored = as_bfloat16(stored)
            state = np.where(broken[order], _BROKEN, _DONE)
            try:
                self._write_rows(rows, stored)
                self._write_checks(rows, _sums(rows, stored) | state)
            except OSError as error:
                raise _no_room(self.folder, error) from error
        self.mark(indices, broken)

    def mark(self, indices: NDArray[np.int64], broken: NDArray[np.bool_] | None = None) -> None:
        """Note rows that another process of this machine has written."""
        self.done[indices] = 1
        self.broken[indices] = False if broken is None else broken

    def _write_rows(self, rows: NDArray[np.int64], values: np.ndarray) -> None:
        assert self.folder is not None
        with open(self.folder / FEATURES, "r+b") as file:
            for first, block in _runs(rows, values):
                file.seek(self._start[FEATURES] + first * self.width * self.dtype.itemsize)
                file.write(block.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def _write_checks(self, rows: NDArray[np.int64], checks: NDArray[np.uint64]) -> None:
        assert self.folder is not None
        with open(self.folder / CHECKS, "r+b") as file:
            for first, block in _runs(rows, checks):
                file.seek(self._start[CHECKS] + first * 8)
                file.write(block.tobytes())

    def table(self) -> NDArray[np.float32]:
        """All rows; on disk a copy-on-write mapping, so nobody can spoil the file (of bfloat16 a
        copy in memory)."""
        if self.folder is None:
            return self._features
        return as_float32(load_npy(self.folder / FEATURES, mmap_mode="c"))


def _sums(rows: NDArray[np.int64], values: np.ndarray) -> NDArray[np.uint64]:
    """A checksum of each row and its position, `[n]`, its two lowest bits 0: the words of a row,
    each times an odd number of its own, modulo 2^64; so any change of one word shows."""
    words = np.ascontiguousarray(values).view(f"u{values.itemsize}").astype(np.uint64)
    with np.errstate(over="ignore"):
        factors = (np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)
        sums = ((words + np.uint64(1)) * factors).sum(axis=1, dtype=np.uint64)
        sums += (rows.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        # The bits that hold the state are given up; the words' lowest bits reach the others.
        mixed: NDArray[np.uint64] = (sums ^ (sums << np.uint64(32))) & ~_STATE
    return mixed


def is_done(checks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which checks are of finished rows, those of inputs that cannot be read among them."""
    done: NDArray[np.bool_] = (checks & _STATE) != 0
    return done


def is_broken(checks: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which checks are of inputs that cannot be read."""
    broken: NDArray[np.bool_] = (checks & _STATE) == _BROKEN
    return broken


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _runs(
    rows: NDArray[np.int64], values: NDArray[np.generic]
) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """Values of rows in ascending order, in pieces of consecutive rows with the first row of
    each."""
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for own, block in zip(np.split(rows, breaks), np.split(values, breaks), strict=True):
        yield int(own[0]), block


def _data_start(path: Path) -> int:
    """Where a .npy file's values begin."""
    return int(np.load(path, mmap_mode="r").offset)


def _no_room(folder: Path, error: OSError) -> DataError:
    reason = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
    return DataError(
        f"{folder}: features cannot be cached here: {reason}. Make room or choose another folder"
        " with VLKD_CACHE."
    )
