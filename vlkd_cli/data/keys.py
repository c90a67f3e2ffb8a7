"""Integers that are equal where two samples have the same caption, or the same cell of a column."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import cached_arrays
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError

CAPTION = "caption"
"""What `data.distinct` and `positives` call the captions themselves; other words are columns."""
_STORE_ABOVE = 200_000
"""Texts whose keys are worth a file in the cache."""


def key_of(text: str) -> int:
    """64-bit blake2b of a text with its white space collapsed, halved to fit int64; -1 for an
    empty one, which equals nothing."""
    words = " ".join(text.split()).encode("utf-8", "surrogatepass")
    if not words:
        return -1
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> 1


def keys_of(texts: Iterable[str]) -> np.ndarray:
    """`key_of` of each text, int64."""
    return np.fromiter(map(key_of, texts), dtype=np.int64)


def caption_keys(reader: Reader) -> np.ndarray:
    """Keys of all texts of a reader, int64, in the rows of its table of texts; -1 for texts of
    samples that cannot be read. Those of large data are stored in the cache folder."""

    def build(_: object) -> dict[str, np.ndarray]:
        keys = np.full(reader.num_captions, -1, dtype=np.int64)
        for index in range(len(reader)):
            start, stop = reader.caption_start(index), reader.caption_start(index + 1)
            try:
                keys[start:stop] = keys_of(reader.captions(index))
            except Broken:
                continue  # the loader reports it
        return {"keys": keys}

    store = reader.num_captions > _STORE_ABOVE
    name = digest_of("caption-keys-1", reader.fingerprint()) if store else ""
    return cached_arrays(name, build, store=store)["keys"]


def column_keys(reader: Reader, name: str) -> np.ndarray:
    """Keys of a column's cells, int64 `[N]`.

    Raises:
        DataError: the reader has no such column.
    """
    return keys_of(reader.column(name))


def column_grades(reader: Reader, name: str) -> np.ndarray:
    """A column of grades, float32 `[N]`.

    Raises:
        DataError: the reader has no such column, or a cell is not a number in 0 to 1.
    """
    grades = np.empty(len(reader), dtype=np.float32)
    for index, cell in enumerate(reader.column(name)):
        try:
            grades[index] = float(cell)
        except ValueError:
            grades[index] = np.nan
        if not 0 <= grades[index] <= 1:
            raise DataError(
                f"{reader.name(index)}: column '{name}' is {cell!r}, and a grade is a number in 0"
                " to 1. Correct the cell, or scale the column."
            )
    return grades
