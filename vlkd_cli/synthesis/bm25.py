"""Okapi BM25 in NumPy: an index of passages, exact lists and scores of pairs."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """The words of a text: runs of a to z and 0 to 9 after lower-casing, without stemming."""
    return _WORD.findall(text.lower())


class BM25Index:
    """The words of N passages, and what each is worth.

    A passage scores, for each word of the query (a word that occurs twice counts twice),
    idf * tf (k1 + 1) / (tf + k1 (1 - b + b L / mean L)), with tf its occurrences in the passage, L
    the passage's number of words, and idf = log(1 + (N - n + 0.5) / (n + 0.5)) for a word of n
    passages.

    Args:
        passages: their texts; 12 bytes are held for each different word of a passage.
        k1, b: how soon repetitions stop to count, and how much a passage's length does.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, section 3.5; the
        idf is Lucene's, which is never negative.
    """

    def __init__(self, passages: Iterable[str], *, k1: float = 0.9, b: float = 0.4) -> None:
        self._numbers: dict[str, int] = {}
        words, owners, counts, lengths = array("i"), array("i"), array("i"), array("i")
        for position, text in enumerate(passages):
            found = words_of(text)
            lengths.append(len(found))
            for word, count in Counter(found).items():
                words.append(self._numbers.setdefault(word, len(self._numbers)))
                owners.append(position)
                counts.append(count)
        # Each array is freed or overwritten as soon as it can be: they are the peak of a command.
        in_passages = np.bincount(np.asarray(words), minlength=len(self._numbers))
        order = np.argsort(np.asarray(words), kind="stable")
        del words
        self._owners = np.asarray(owners)[order]
        del owners
        self._worth = np.asarray(counts)[order].astype(np.float64)
        del counts, order
        length = np.asarray(lengths).astype(np.float64)
        self.num_passages = len(length)
        self._starts = np.concatenate([[0], np.cumsum(in_passages)])
        idf = np.log1p((self.num_passages - in_passages + 0.5) / (in_passages + 0.5))
        mean = max(length.mean(), 1e-9) if len(length) else 1.0
        norm = (k1 * (1 - b + b * length / mean))[self._owners]
        norm += self._worth
        self._worth *= k1 + 1
        self._worth /= norm
        del norm
        self._worth *= np.repeat(idf, in_passages)

    def scores(self, query: str) -> NDArray[np.float64]:
        """A score for every passage, `[N]`; 0 where no word of the query occurs."""
        scores = np.zeros(self.num_passages)
        for word, count in Counter(words_of(query)).items():
            number = self._numbers.get(word)
            if number is not None:
                own = slice(self._starts[number], self._starts[number + 1])
                # A passage occurs once in the list of a word, so plain indexing adds correctly.
                scores[self._owners[own]] += count * self._worth[own]
        return scores

    def best(self, query: str, depth: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the best passages that share a word with the query, at most `depth`.

        Args:
            keys: what breaks ties, `[N]`; the larger comes first.
        """
        scores = self.scores(query)
        found = np.flatnonzero(scores > 0)
        if len(found) > depth:
            least = np.partition(scores[found], -depth)[-depth]
            found = found[scores[found] >= least]
        order: NDArray[np.int64] = found[np.lexsort((-keys[found], -scores[found]))][:depth]
        return order
