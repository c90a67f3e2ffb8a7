"""Which mined passages of a query are its positive and its negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.mining import Mined


class Chosen(NamedTuple):
    """The passages of a query that become relations.

    Args:
        positives: their positions, one block of relations each.
        negatives: positions in the mined list, ascending; the same for every positive.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]


def choose(
    mined: Mined,
    query: int,
    spec: SynthesisSpec,
    judged: Mapping[int, float] | None = None,
    min_grade: float = 1,
) -> Chosen:
    """The positives and negatives of a query; either is empty where there is none.

    The positive is the first mined passage, or each that is judged well enough. Of the rest,
    without those that are judged relevant at all, `relations - 1` are negatives: the next ones
    (`top`), or those with the smallest hash of seed, query and passage (`random`).

    Args:
        query: position of the query in its file, from 0.
        judged: passage -> grade, of `positive: judged`.
        min_grade: the smallest grade of a positive.
    """
    if judged is None:
        positives, rest = mined.passages[:1], np.arange(1, len(mined.passages))
    else:
        wanted = [position for position, grade in judged.items() if grade >= min_grade]
        relevant = [position for position, grade in judged.items() if grade > 0]
        positives = np.array(wanted, dtype=np.int64)
        rest = np.flatnonzero(~np.isin(mined.passages, relevant))
    count = spec.relations - 1
    if spec.sampling == "random" and len(rest) > count:
        numbers = hashed(spec.seed, query, mined.passages[rest])
        rest = np.sort(rest[np.argsort(numbers, kind="stable")[:count]])
    return Chosen(positives, rest[:count])
