"""Which rows of a table belong to one image."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


class Groups(NamedTuple):
    """Rows `[N]` in the order of their images, and where the rows of each image begin `[M + 1]`."""

    rows: np.ndarray
    starts: np.ndarray

    def first_rows(self) -> np.ndarray:
        """The row of each image that comes first in the table."""
        first: np.ndarray = self.rows[self.starts[:-1]]
        return first

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """A number of each row, added up over the rows of each image."""
        return np.add.reduceat(counts[self.rows], self.starts[:-1])


def row_key(image: str) -> int:
    """64 bits of a hash: a table may name a billion images, whose names would fill the memory."""
    text = image.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def group_rows(keys: np.ndarray) -> Groups | None:
    """The rows with equal keys, images in the order in which they first occur; None: no key occurs
    twice.

    Args:
        keys: uint64 `[N]`, of each row.
    """
    _, firsts, members, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    if len(firsts) == len(keys):
        return None
    by_occurrence = np.argsort(firsts, kind="stable")
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[by_occurrence] = np.arange(len(firsts))
    starts = np.concatenate([[0], np.cumsum(sizes[by_occurrence])])
    return Groups(np.argsort(rank[members], kind="stable"), starts)
