"""Copies of remote, compressed or recoded files in the cache folder."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vlkd_cli.data.files.cached_arrays import data_cache
from vlkd_cli.errors import DataError


def cached_copy(key: str, write: Callable[[BinaryIO], None]) -> Path:
    """The copy of a key, written where there is none. Its name ends in its size: one that was cut
    off is written again.

    Args:
        key: what determines the content.
        write: writes the content into an open file; whatever it raises leaves no copy.

    Raises:
        DataError: the cache folder cannot be written.
    """
    folder = data_cache() / "copies"
    name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    for copy in sorted(folder.glob(f"{name}-*")):
        if copy.name.rpartition("-")[2] == str(copy.stat().st_size):
            return copy
    # Not tempfile's, which only its owner could read: several users may share a cache.
    making = folder / f"making-{uuid.uuid4().hex}"
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = open(making, "xb")  # noqa: SIM115
        except OSError as error:
            raise DataError(
                f"cannot write {folder} ({error.strerror}). Set VLKD_CACHE to a folder that can be"
                " written and has room."
            ) from None
        with file:
            write(file)
        copy = folder / f"{name}-{making.stat().st_size}"
        os.replace(making, copy)
        return copy
    finally:
        making.unlink(missing_ok=True)
