"""Queries and passages of a collection by position, and by id: arrays that are mapped into memory
where they are large."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.files.cached_arrays import CACHE_ABOVE_BYTES, CachedArrays, cached_arrays
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.passages import Collection, Corpus, read_queries
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.errors import DataError

_AT_ONCE = 4096


class TextsById:
    """Texts by position in their file, and their positions by id.

    Args:
        arrays: what `passage_table` stores.
        name: of these texts in the arrays.
    """

    def __init__(self, arrays: CachedArrays, name: str) -> None:
        self.ids: NDArray[np.bytes_] = arrays[f"{name}_ids"]
        self._order: NDArray[np.int64] = arrays[f"{name}_order"]
        self._ends: NDArray[np.int64] = arrays[f"{name}_ends"]
        self._texts = TextTable.of_arrays(arrays[f"{name}_blob"], self._ends)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> str:
        return self._texts[position]

    def id_of(self, position: int) -> str:
        """The id of a text."""
        return str(self.ids[position].decode())

    @functools.cached_property
    def keys(self) -> NDArray[np.int64]:
        """For each text the rank of its id among all ids in ascending order, which breaks ties."""
        keys = np.empty(len(self), dtype=np.int64)
        keys[self._order] = np.arange(len(self))
        return keys

    def of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of keys."""
        positions: NDArray[np.int64] = self._order[keys]
        return positions

    def blank(self) -> NDArray[np.int64]:
        """Positions of texts without a character that is not white space."""
        # Only short ones are looked at: blank texts are empty nearly always.
        short = np.flatnonzero(np.diff(self._ends) < 64)
        found = [position for position in short.tolist() if not self[position].strip()]
        return np.array(found, dtype=np.int64)

    def texts(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[str]]]:
        """Chunks of `size` texts, each with its number; only those that are wanted."""
        for chunk in filter(wanted, range(-(-len(self) // size))):
            yield chunk, self._texts.slice(chunk * size, min((chunk + 1) * size, len(self)))

    def positions(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Where these ids are; -1 for those that are not there."""
        wanted = np.array([name.encode() for name in ids], dtype=np.bytes_)
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        found = np.searchsorted(self.ids, wanted, sorter=self._order).clip(max=len(self) - 1)
        positions: NDArray[np.int64] = self._order[found]
        return np.where(self.ids[positions] == wanted, positions, -1)


class PassageTable:
    """The queries and passages of a collection.

    Args:
        collection: where they are.
        title: put a passage's title before its text (BEIR).

    Raises:
        DataError: a file cannot be read, or there are no titles to leave out.
    """

    def __init__(self, collection: Collection, *, title: bool = True) -> None:
        if not title and (collection.is_marco or collection.is_lines):
            raise DataError(
                f"data.title has no effect: {collection.corpus} holds no titles. Leave it out."
            )
        files = [collection.root / collection.corpus, collection.root / collection.queries]
        states = [(str(file.resolve()), *_state(file)) for file in files]
        self._arrays = cached_arrays(
            digest_of("passages-1", states, title),
            lambda scratch: _arrays(collection, title, scratch),
            store=sum(file.stat().st_size for file in files) > CACHE_ABOVE_BYTES,
        )
        self.queries = TextsById(self._arrays, "query")
        self.passages = TextsById(self._arrays, "passage")

    def digest(self) -> str:
        """Changes with any id or text."""
        return digest_of(self._arrays.sums())


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _arrays(collection: Collection, title: bool, scratch: Path) -> dict[str, np.ndarray]:
    corpus = Corpus(collection, title=title)
    queries = read_queries(collection)
    passages = (text for _, texts in corpus.texts(_AT_ONCE, lambda _: True) for text in texts)
    query_ids = np.array([name.encode() for name in queries], dtype=np.bytes_)
    return {
        **_table("passage", corpus.ids, passages, scratch),
        **_table("query", query_ids, queries.values(), scratch),
    }


def _table(
    name: str, ids: NDArray[np.bytes_], texts: Iterable[str], scratch: Path
) -> dict[str, np.ndarray]:
    """The arrays of `TextsById`; the texts pass through a file, whatever their size."""
    ends, file = [0], scratch / name
    with file.open("wb") as out:
        for text in texts:
            ends.append(ends[-1] + out.write(text.encode("utf-8", "surrogatepass")))
    blob = np.memmap(file, dtype=np.uint8, mode="r") if ends[-1] else np.zeros(0, dtype=np.uint8)
    return {
        f"{name}_ids": ids,
        f"{name}_order": np.argsort(ids, kind="stable"),
        f"{name}_blob": blob,
        f"{name}_ends": np.array(ends, dtype=np.int64),
    }
