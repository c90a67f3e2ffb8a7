"""What every scorer is: a number for a query and a passage; higher is a better answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.synthesis.sources import Sources


class Pairs(NamedTuple):
    """A query and the passages that it is scored with, by position."""

    query: int
    passages: NDArray[np.int64]


class Scorer:
    """Scores pairs of a query and a passage.

    A subclass takes its recipe keys as keyword-only constructor arguments. Its scores may depend on
    the collection and on the pairs of one call, and on nothing else: ranks share the calls, and an
    interrupted command repeats some.
    """

    def open(self, sources: Sources) -> None:
        """Prepare for a collection; called once, on every rank, before `scores`.

        Raises:
            UserError: something is missing.
        """
        raise NotImplementedError

    def digest(self) -> str:
        """Changes with anything of its own that its scores depend on, weights among it."""
        raise NotImplementedError

    def scores(self, pairs: Sequence[Pairs]) -> list[NDArray[np.float64]]:
        """For each query a score for each of its passages."""
        raise NotImplementedError
