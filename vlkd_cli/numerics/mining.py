"""Hard negatives by exact search: for each query the best rows that are not right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.numerics.topk import TopK

_ROWS_AT_ONCE = 1 << 16


class Rules(NamedTuple):
    """Which of a query's ranked candidates are taken.

    Args:
        num: at most so many.
        start, stop: ranks `[start, stop)` among what is not right; None: to the end.
        absolute_margin: a score must lie this far below that of the lowest positive.
        relative_margin: and this fraction of that score.
        max_score, min_score: bounds of the score.
    """

    num: int
    start: int = 0
    stop: int | None = None
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None

    def ceiling(self, lowest_positive: np.ndarray) -> np.ndarray:
        """The highest score that is taken, for queries with these scores of their lowest
        positive."""
        top = np.full_like(lowest_positive, np.inf if self.max_score is None else self.max_score)
        if self.absolute_margin is not None:
            top = np.minimum(top, lowest_positive - self.absolute_margin)
        if self.relative_margin is not None:
            off = np.abs(lowest_positive) * self.relative_margin
            top = np.minimum(top, lowest_positive - off)
        return top


class Mined(NamedTuple):
    """Negatives of each query, best first.

    Args:
        rows: `[Q, num]` int64 rows of the corpus; -1 where a query falls short.
        scores: `[Q, num]` float32, NaN there.
    """

    rows: np.ndarray
    scores: np.ndarray


def mine(
    queries: Tensor,
    corpus: Tensor,
    rules: Rules,
    *,
    query_keys: np.ndarray,
    corpus_keys: np.ndarray,
    positives: Sequence[Sequence[int]],
    left_out: Sequence[np.ndarray] | None = None,
    block_rows: int | None = None,
) -> Mined:
    """The negatives of every query: its own positives, rows of an equal key and those left out do
    not count, the others are ranked by score, ties by row.

    Scores are inner products in float64, rounded to float32, so that the outcome depends neither on
    blocks nor on the device. Memory: the features, a block of scores, `stop` candidates a query.

    Args:
        queries: `[Q, D]` float32, of unit length for cosines.
        corpus: `[N, D]` likewise.
        query_keys, corpus_keys: int64; negative ones equal nothing.
        positives: rows of the corpus that are right, for each query; at least one where a margin is
            asked for.
        left_out: further rows that are not negatives of each query, without being its positives.
        block_rows: rows that are scored at once.

    Source: the rules of sentence-transformers, `util/hard_negatives.py: mine_hard_negatives`, with
        the margin below the lowest positive.
    """
    excluded = _excluded(query_keys, corpus_keys, positives)
    if left_out is not None:
        excluded = [np.union1d(*both) for both in zip(excluded, left_out, strict=True)]
    stop = len(corpus) if rules.stop is None else min(rules.stop, len(corpus))
    needed = np.minimum(
        stop + np.array([len(each) for each in excluded], dtype=np.int64), len(corpus)
    )
    rows = np.full((len(queries), rules.num), -1, dtype=np.int64)
    scores = np.full((len(queries), rules.num), np.nan, dtype=np.float32)
    ceiling = rules.ceiling(_lowest(queries, corpus, positives))
    # Queries that need about as many candidates are searched together: a caption that comes a
    # thousand times would cost all others as many.
    groups = np.ceil(np.log2(np.maximum(needed, 1))).astype(np.int64)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        found = TopK(queries[members], int(needed[members].max()), block_rows=block_rows)
        last = len(corpus) - 1
        for start in range(0, len(corpus), _ROWS_AT_ONCE):
            block = corpus[start : start + _ROWS_AT_ONCE]
            # Of equal scores the highest key is the first.
            keys = last - torch.arange(start, start + len(block))
            found.add(block, keys)
        for query, own_scores, own_keys in zip(members.tolist(), *found.result(), strict=True):
            candidates = last - own_keys.cpu().numpy()
            right = np.isin(candidates, excluded[query])
            ranked = np.flatnonzero(~right)[rules.start : stop]
            values = own_scores.cpu().numpy()[ranked]
            fits = values <= ceiling[query]
            if rules.min_score is not None:
                fits &= values >= rules.min_score
            taken = ranked[fits][: rules.num]
            rows[query, : len(taken)] = candidates[taken]
            scores[query, : len(taken)] = own_scores.cpu().numpy()[taken]
    return Mined(rows, scores)


def _excluded(
    query_keys: np.ndarray, corpus_keys: np.ndarray, positives: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    order = np.argsort(corpus_keys, kind="stable")
    ordered = corpus_keys[order]
    first, last = (np.searchsorted(ordered, query_keys, side) for side in ("left", "right"))
    found = []
    for query, own in enumerate(positives):
        equal = order[first[query] : last[query]] if query_keys[query] >= 0 else order[:0]
        found.append(np.union1d(equal, np.asarray(own, dtype=np.int64)))
    return found


def _lowest(queries: Tensor, corpus: Tensor, positives: Sequence[Sequence[int]]) -> np.ndarray:
    """The score of each query's lowest positive, float64; infinity without one."""
    lowest = np.full(len(queries), np.inf)
    for query, own in enumerate(positives):
        if len(own):
            rows = corpus[torch.as_tensor(list(own))].double()
            lowest[query] = float((rows @ queries[query].double()).float().min())
    return lowest
