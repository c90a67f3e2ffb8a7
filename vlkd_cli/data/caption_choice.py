"""Which of the captions of a sample a step reads, where they come from sources with weights:
`caption: [raw, long, synthetic], caption_weights: [1, 2, 2]`."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from vlkd_cli.errors import DataError
from vlkd_cli.recipe.caption_weights import weights_problem

_BITS = 32


class Sources(NamedTuple):
    """Where the captions of a sample come from.

    Args:
        of_captions: number of the source of each caption.
        weights: how often each source is chosen, in any unit.
    """

    of_captions: Sequence[int]
    weights: Sequence[float]


def chosen(choice: int, sources: Sources) -> int:
    """Position of the caption that a random number of 63 bits chooses: a source by its weight, then
    any of its captions. A source that is empty gives way to the next one, the last to the first.

    Args:
        sources: of a sample that has at least one caption.
    """
    edges = list(itertools.accumulate(sources.weights))
    point = (choice & ((1 << _BITS) - 1)) / (1 << _BITS) * edges[-1]
    wanted = min(bisect.bisect_right(edges, point), len(edges) - 1)
    there = sorted(set(sources.of_captions))
    source = there[bisect.bisect_left(there, wanted) % len(there)]
    found = [position for position, own in enumerate(sources.of_captions) if own == source]
    return found[(choice >> _BITS) % len(found)]


def checked_weights(
    weights: Sequence[float] | None, num_sources: int, key: str = "caption"
) -> tuple[float, ...]:
    """A recipe's `caption_weights`; empty where there are none.

    Args:
        num_sources: how many sources of captions the other keys name.
        key: which of them names the sources.

    Raises:
        DataError: there is another number of them, or one is not positive.
    """
    if weights is None:
        return ()
    problem = weights_problem(weights, num_sources, key)
    if problem:
        raise DataError(f"data.caption_weights {problem}")
    return tuple(map(float, weights))
