"""The point clouds of a data set's mesh files, sampled once and stored in the cache folder, so that
later epochs and runs open no mesh."""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.cache_folder import make_folder
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import data_cache
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.meshes.points import COLUMNS, cloud_of_file
from vlkd_cli.errors import DataError
from vlkd_cli.numerics.npy import load_npy

_CLOUDS, _CHECKS = "clouds.npy", "checks.npy"


class Clouds:
    """Point clouds `[points, 6]` float32 of mesh files, by position.

    A row is written when it is first asked for, by whichever process asks; all would write the same
    bytes. A row whose checksum differs (it is not there, or a crash left half of it) is sampled
    again. Files that cannot be read are not stored. Survives pickling.

    Args:
        paths: of the files; an empty one is a mesh that is missing.
        points: of each cloud.
    """

    def __init__(self, paths: Sequence[str], points: int) -> None:
        self.paths, self.points = TextTable(paths), points
        self.folder = data_cache() / "meshes" / digest_of("1", points, [_state(p) for p in paths])
        self._rows: NDArray[np.float32] | None = None
        self._checks: NDArray[np.uint64] | None = None

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The cloud of the mesh at a position.

        Raises:
            Broken: the file cannot be read, or is not a surface.
            DataError: the cache folder cannot be written.
        """
        if self._rows is None or self._checks is None:
            self._open()
        assert self._rows is not None and self._checks is not None
        stored = np.array(self._rows[index])
        if self._checks[index] == _check(stored):
            return stored
        if not self.paths[index]:
            raise Broken("the row names no mesh")
        cloud = cloud_of_file(self.paths[index], self.points)
        self._write(index, cloud)
        return cloud

    def _open(self) -> None:
        try:
            if not self._fits():
                self._create()
            self._rows = np.asarray(load_npy(self.folder / _CLOUDS, mmap_mode="r"))
            self._checks = np.asarray(load_npy(self.folder / _CHECKS, mmap_mode="r"))
            self._starts = [_start(self.folder / name) for name in (_CLOUDS, _CHECKS)]
        except OSError as error:
            raise self._no_room(error) from None

    def _fits(self) -> bool:
        shape = (len(self.paths), self.points, COLUMNS)
        try:
            rows = load_npy(self.folder / _CLOUDS, mmap_mode="r")
            checks = load_npy(self.folder / _CHECKS, mmap_mode="r")
        except (OSError, ValueError):
            return False
        found = rows.shape, rows.dtype, checks.shape, checks.dtype
        return found == (shape, np.float32, shape[:1], np.uint64)

    def _create(self) -> None:
        make_folder(self.folder.parent)
        fresh = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}")
        make_folder(fresh)
        count = len(self.paths)
        try:
            # Files of zeros are sparse: they take room only where they are filled.
            for name, dtype, shape in (
                (_CLOUDS, np.float32, (count, self.points, COLUMNS)),
                (_CHECKS, np.uint64, (count,)),
            ):
                np.lib.format.open_memmap(fresh / name, mode="w+", dtype=dtype, shape=shape).flush()
                os.chmod(fresh / name, fresh.stat().st_mode & 0o666)
            shutil.rmtree(self.folder, ignore_errors=True)
            os.rename(fresh, self.folder)
        except OSError:
            # Another process may have been faster with the same table.
            if not self._fits():
                raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _write(self, index: int, cloud: NDArray[np.float32]) -> None:
        """Through the files and not through the mapping: a full disk is then an error that can be
        reported instead of a bus error."""
        values = (cloud.tobytes(), np.array(_check(cloud)).tobytes())
        try:
            for name, start, value in zip((_CLOUDS, _CHECKS), self._starts, values, strict=True):
                with open(self.folder / name, "r+b") as file:
                    file.seek(start + index * len(value))
                    file.write(value)
        except PermissionError:
            pass  # another user's folder, which can be read all the same
        except OSError as error:
            raise self._no_room(error) from None

    def _no_room(self, error: OSError) -> DataError:
        return DataError(
            f"{self.folder}: point clouds cannot be stored here: {error.strerror or error}. Make"
            " room, or set VLKD_CACHE to another folder."
        )

    def __getstate__(self) -> dict[str, object]:
        # A mapped array would be pickled with its content.
        return {**self.__dict__, "_rows": None, "_checks": None}


def _state(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path, -1, -1
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def _check(cloud: NDArray[np.float32]) -> np.uint64:
    """Never 0, which marks a row that was not written."""
    return np.uint64(zlib.crc32(cloud.tobytes()) | 1 << 32)


def _start(path: Path) -> int:
    """Where a .npy file's values begin."""
    return int(np.load(path, mmap_mode="r").offset)
