"""Indexes of large files: built once, kept in the cache folder, memory-mapped by every process that
reads the data."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.errors import DataError

KEEP_ABOVE_BYTES = 32 << 20
"""Data files up to this size are indexed anew, in memory, each time they are opened."""


def data_cache() -> Path:
    """Where indexes and copies of remote tables are kept: VLKD_CACHE, else ~/.cache/vlkd."""
    return cache_folder() / "data"


class KeptArrays:
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
                    np.load(file, mmap_mode="r" if file.stat().st_size > 4096 else None)
                )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __reduce__(self) -> Any:
        return (
            (KeptArrays, (None, self.folder))
            if self.folder is not None
            else (KeptArrays, (self._arrays, None))
        )


def kept_arrays(
    key: str, build: Callable[[Path], dict[str, np.ndarray]], *, keep: bool
) -> KeptArrays:
    """The arrays that `build` makes, out of the cache folder where they were made before.

    Args:
        key: what determines the arrays.
        build: makes them; it is given a folder for files that are too large for memory, which is
            gone afterwards.
        keep: False: in memory, nothing is written but what `build` writes.

    Raises:
        DataError: the cache folder cannot be written.
    """
    if not keep:
        with tempfile.TemporaryDirectory() as temporary:
            return KeptArrays(
                {name: np.array(array) for name, array in build(Path(temporary)).items()}
            )
    folder = data_cache() / "index" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            making = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
        except OSError as error:
            raise DataError(
                f"cannot write {folder.parent} ({error.strerror}). Set VLKD_CACHE to a folder that"
                " can be written."
            ) from None
        try:
            scratch = making / "scratch"
            scratch.mkdir()
            arrays = build(scratch)
            for name in list(arrays):
                np.save(making / f"{name}.npy", arrays.pop(name))
            shutil.rmtree(scratch)
            os.replace(making, folder)
        except OSError as error:
            # Another process may have been quicker; a folder that is there is complete.
            if not folder.is_dir():
                raise DataError(
                    f"cannot write {folder} ({error.strerror}). Free space, or set VLKD_CACHE to"
                    " another folder."
                ) from None
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return KeptArrays(folder=folder)
