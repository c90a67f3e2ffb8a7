"""Which of a sample's captions an epoch reads."""

from __future__ import annotations

import numpy as np

from vlkd_cli.data.caption_choice import chosen
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.readers.reader import Reader


def choices(seed: int, epoch: int, rows: np.ndarray) -> np.ndarray:
    """A random number for each row, uint64; modulo the number of its captions, or by the weights
    of their sources, it selects the caption."""
    return hashed(seed, epoch, rows) >> np.uint64(1)


def chosen_texts(
    reader: Reader, rows: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the chosen captions in a table of all texts, int64, and which samples have any."""
    starts = reader.caption_starts(rows)
    if reader.text_names:
        spans = [reader.text_span(row) for row in rows.tolist()]
        first, stop = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    else:
        first, stop = np.zeros_like(starts), reader.caption_starts(rows + 1) - starts
    if reader.weighs_captions:
        own = [
            chosen(number, reader.caption_sources(row)) if has_any else 0
            for row, number, has_any in zip(
                rows.tolist(), numbers.tolist(), stop > first, strict=True
            )
        ]
    else:
        own = (numbers % np.maximum(stop - first, 1).astype(np.uint64)).astype(np.int64).tolist()
    found: np.ndarray = starts + first + np.array(own, dtype=np.int64)
    return found, stop > first


class EpochCaptions:
    """Keys of the captions that an epoch reads; picklable.

    Args:
        reader: the data.
        keys: of all its texts, int64.
        seed: the run's.
    """

    def __init__(self, reader: Reader, keys: np.ndarray, seed: int) -> None:
        self.reader, self.keys, self.seed = reader, keys, seed

    def __call__(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        texts, has_any = chosen_texts(self.reader, rows, choices(self.seed, epoch, rows))
        found = np.full(len(rows), -1, dtype=np.int64)
        found[has_any] = self.keys[texts[has_any]]
        return found


class ColumnKeys:
    """Keys that are the same in every epoch; picklable.

    Args:
        keys: of all rows, int64.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys

    def __call__(self, epoch: int, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.keys[rows]
        return found
