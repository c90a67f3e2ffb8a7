"""The data of a suite: a reader, what it is called, and which part of it this is."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.suite import Subject

DEFAULT_DATA = {"reader": "shapes", "split": "val"}


class Dataset(NamedTuple):
    """Data with the names that a result reports."""

    reader: Reader
    name: str
    split: str

    @property
    def row_hash(self) -> str:
        """Digest of images, captions and their order."""
        return self.reader.fingerprint()


def open_dataset(subject: Subject, data: Mapping[str, Any] | None, *, split: str | None = None) -> Dataset:
    """The data of a suite's `data:` key; by default the drawn shapes.

    Args:
        subject: whose `data_root` relative paths of data are looked up in, where the path does not exist as it is.
        data: `{reader: NAME, ...}` as in a recipe's `data:`, and optionally `name`, what the result calls it.
        split: another part of the same data.

    Raises:
        DataError: see the reader; also data that can only be streamed.
    """
    from vlkd_cli.data.open import open_reader

    keys = dict(data or DEFAULT_DATA)
    name = str(keys.pop("name", "") or _name(keys))
    if split is not None:
        keys["split"] = split
    reader = open_reader(keys)
    if not isinstance(reader, Reader):
        raise DataError(f"data '{name}' can only be read as a stream; evaluation needs every sample at its place. Use local files.")
    if not len(reader):
        raise DataError(f"data '{name}' holds no samples.")
    return Dataset(reader, name, str(keys.get("split", getattr(reader, "split", "")) or "all"))


def class_hash(classes: Sequence[str]) -> str:
    """Digest of class names and their order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]


def _name(keys: Mapping[str, Any]) -> str:
    """What to call data that has no name: the data set, else the file or folder, else the reader."""
    for key in ("dataset", "path", "root", "captions", "annotations"):
        value = keys.get(key)
        if isinstance(value, str) and value:
            return Path(value).stem or value
    return str(keys.get("reader", "data"))
