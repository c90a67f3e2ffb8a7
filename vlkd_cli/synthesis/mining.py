"""Which passages are worth comparing for a query: the lists of several miners, merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.recipe.synthesis_checks import BM25
from vlkd_cli.synthesis.bm25 import BM25Index
from vlkd_cli.synthesis.sources import Sources

NOTHING = -1
"""Fills the lists of queries that have fewer passages."""


class Mined(NamedTuple):
    """The passages of a query, best first, and the number of the miner that found each."""

    passages: NDArray[np.int64]
    miners: NDArray[np.int64]


def mine(sources: Sources, miner: str, depth: int) -> NDArray[np.int32]:
    """The best passages of every query by a miner, `[Q, depth]` positions, `NOTHING` where there
    are fewer; the same on every rank. Passages without text are left out.

    Args:
        miner: a tower's name, or bm25, for which passages without a word of the query do not count.
    """
    lists = np.full((len(sources.queries), depth), NOTHING, dtype=np.int32)
    if miner == BM25:
        passages = sources.passages
        index = BM25Index(passages[row] for row in range(len(passages)))
        own = lists[rank() :: world_size()]
        for row, query in zip(own, range(rank(), len(lists), world_size()), strict=True):
            found = index.best(sources.queries[query], depth, passages.keys)
            row[: len(found)] = found
        for number, rows in enumerate(gather_objects(own)):
            lists[number :: world_size()] = rows
        return lists
    spare = len(sources.blank)
    nearest = sources.nearest(miner, min(depth + spare, len(sources.passages)))
    for row, found in enumerate(nearest):
        usable = found[~np.isin(found, sources.blank)][:depth] if spare else found[:depth]
        lists[row, : len(usable)] = usable
    return lists


def merged(lists: Sequence[NDArray[np.integer]]) -> Mined:
    """The lists of several miners as one: all first positions in the order of the miners, then all
    second ones; a passage counts where it comes first."""
    depth = max((len(own) for own in lists), default=0)
    passages, miners, seen = [], [], set()
    for position in range(depth):
        for number, own in enumerate(lists):
            passage = int(own[position]) if position < len(own) else NOTHING
            if passage != NOTHING and passage not in seen:
                seen.add(passage)
                passages.append(passage)
                miners.append(number)
    return Mined(np.array(passages, dtype=np.int64), np.array(miners, dtype=np.int64))
