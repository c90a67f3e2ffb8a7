"""BM25 as a scorer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.recipe.types import NonNegative, Probability
from vlkd_cli.synthesis.bm25 import BM25Index
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources


class BM25(Scorer):
    """Okapi BM25 over words of a to z and 0 to 9, lower-cased, without stemming.

    Args:
        k1: how much repetitions of a word add; 0: nothing.
        b: how much longer passages lose; 0: nothing.

    Source: see `synthesis.bm25.BM25Index`.
    """

    def __init__(self, *, k1: NonNegative = 0.9, b: Probability = 0.4) -> None:
        self.k1, self.b = k1, b

    def open(self, sources: Sources) -> None:
        passages = sources.passages
        self._queries = sources.queries
        self._index = BM25Index(
            (passages[position] for position in range(len(passages))), k1=self.k1, b=self.b
        )

    def digest(self) -> str:
        return f"bm25 {self.k1} {self.b}"

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        return [self._index.scores(self._queries[query])[own] for query, own in pairs]
