"""Indexes of large files: built once, stored in the cache folder, memory-mapped by every process
that reads the data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.errors import DataError
from vlkd_cli.numerics.npy import load_npy

CACHE_ABOVE_BYTES = 32 << 20
"""Data files up to this size are indexed again, in memory, each time they are opened."""

_SUMS = "sums.json"
_CHECKED_BYTES, _PIECE_BYTES = 64 << 20, 1 << 14


def data_cache() -> Path:
    """Where indexes and copies of remote tables are stored: VLKD_CACHE, else ~/.cache/vlkd."""
    return cache_folder() / "data"


class CachedArrays:
    """Named arrays, in memory or memory-mapped from a folder; pickled as the folder's name in the
    latter case.

    Args:
        arrays: in memory.
        folder: with one `.npy` file per array, instead.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray] | None = None, folder: Path | None = None
    ) -> None:
        self.folder = folder
        self._arrays = arrays if arrays is not None else {}
        if folder is not None:
            for file in sorted(folder.glob("*.npy")):
                # The plain array over the map is faster to index than numpy.memmap.
                self._arrays[file.stem] = np.asarray(
                    load_npy(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
                )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def sums(self) -> dict[str, str]:
        """A digest of each array: of all of it, or of evenly spaced pieces where it is large."""
        return {name: _digest(array) for name, array in sorted(self._arrays.items())}

    def __reduce__(self) -> tuple[object, ...]:
        return (
            (CachedArrays, (None, self.folder))
            if self.folder is not None
            else (CachedArrays, (self._arrays, None))
        )


def cached_arrays(
    key: str, build: Callable[[Path], dict[str, np.ndarray]], *, store: bool
) -> CachedArrays:
    """The arrays that `build` makes, out of the cache folder where they were made before. Arrays
    there that are damaged are made again.

    Args:
        key: what determines the arrays.
        build: makes them; it is given a folder for files that are too large for memory, which is
            gone afterwards.
        store: False: in memory, nothing is written but what `build` writes.

    Raises:
        DataError: the cache folder cannot be written.
    """
    if not store:
        with tempfile.TemporaryDirectory() as temporary:
            return CachedArrays(
                {name: np.array(array) for name, array in build(Path(temporary)).items()}
            )
    folder = _folder(key)
    found = _stored(folder)
    if found is None:
        with _alone(folder):
            # Another process of this machine may have made them in the meantime.
            found = _stored(folder) or _built(folder, build)
    return found


def is_cached(key: str) -> bool:
    """Whether the cache folder has the arrays of a key."""
    return _folder(key).is_dir()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file of the cache folder; it appears when it is whole.

    Raises:
        DataError: the cache folder cannot be written.
    """
    making = file.with_name(f"making-{uuid.uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        making.write_bytes(content)
        os.replace(making, file)
    except OSError as error:
        raise _unwritable(file.parent, error) from None
    finally:
        making.unlink(missing_ok=True)


def _folder(key: str) -> Path:
    return data_cache() / "index" / hashlib.sha256(key.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of a machine at a time, where the file system has locks; elsewhere each makes the
    arrays, and one of them is used."""
    import fcntl

    locks = data_cache() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        file = (locks / folder.name).open("ab")
    except OSError as error:
        raise _unwritable(locks, error) from None
    with file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write {folder} ({error.strerror}). Set VLKD_CACHE to a folder that can be written"
        " and has room."
    )


def _stored(folder: Path) -> CachedArrays | None:
    if not folder.is_dir():
        return None
    try:
        arrays = CachedArrays(folder=folder)
        if arrays.sums() == read_json(folder / _SUMS):
            return arrays
    except (OSError, ValueError):
        pass  # cut off or overwritten: made again
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _built(folder: Path, build: Callable[[Path], dict[str, np.ndarray]]) -> CachedArrays:
    # Not tempfile's folder, which only its owner could read: several users may share a cache.
    making = folder.with_name(f"making-{uuid.uuid4().hex}")
    try:
        scratch = making / "scratch"
        scratch.mkdir(parents=True)
        arrays = build(scratch)
        sums = CachedArrays(arrays).sums()
        for name in list(arrays):
            np.save(making / f"{name}.npy", arrays.pop(name))
        (making / _SUMS).write_text(json.dumps(sums))
        shutil.rmtree(scratch)
        os.replace(making, folder)
    except OSError as error:
        # Another process may have been quicker; a folder that is there is complete.
        if not folder.is_dir():
            raise _unwritable(folder.parent, error) from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return CachedArrays(folder=folder)


def _digest(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    digest = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    if len(content) <= _CHECKED_BYTES:
        digest.update(content)
    else:
        num_pieces = _CHECKED_BYTES // _PIECE_BYTES
        for start in np.linspace(0, len(content) - _PIECE_BYTES, num_pieces).astype(np.int64):
            digest.update(content[start : start + _PIECE_BYTES])
    return digest.hexdigest()
