"""Find the best value of a regularizer on a logarithmic grid with few trainings: coarse first, then
ever closer around the peak."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Score = Callable[[Sequence[int]], Sequence[float]]
"""Scores of several grid positions, in their order; positions that are asked together may be
trained together."""


class Peak(NamedTuple):
    """Grid position of the best score, and the positions in the order in which they were
    trained."""

    position: int
    score: float
    visited: list[int]


def search_peak(score: Score, *, size: int = 97, stride: int = 16) -> Peak:
    """Every `stride`-th position, then both sides of the peak at half the distance, and so on down
    to neighbors.

    The earliest position wins ties, both sides of a step are trained before the center moves, and
    nothing is trained twice. With 97 positions and a stride of 16 these are at most 15 trainings.

    Source: CLIP (Radford et al. 2021, appendix A.3) as in Elevater_Toolkit_IC's
        hyperparameter_sweep.
    """
    known: dict[int, float] = {}

    def visit(positions: Sequence[int]) -> None:
        fresh = [
            position for position in positions if 0 <= position < size and position not in known
        ]
        known.update(zip(fresh, score(fresh), strict=True))

    visit(range(0, size, stride))
    while stride > 1:
        stride //= 2
        peak = _first_best(known)
        visit([peak - stride, peak + stride])
    peak = _first_best(known)
    return Peak(peak, known[peak], list(known))


def search_peak_again(score: Score, *, size: int = 97, stride: int = 16) -> Peak:
    """The same search where each step retrains left, center and right and the best of these
    three becomes the center.

    Scores of a training that is repeated may differ, so the last ones count. If every score is 0
    the peak is position 0.

    Source: CLIP_benchmark's metrics/linear_probe.py.
    """
    start = list(range(0, size, stride))
    visited = list(start)
    values = list(score(start))
    best = max(range(len(start)), key=values.__getitem__)
    peak, top = start[best], values[best]
    while stride > 1:
        stride //= 2
        around = [max(peak - stride, 0), peak, min(peak + stride, size - 1)]
        values = list(score(around))
        visited.extend(around)
        best = max(range(3), key=values.__getitem__)
        peak, top = around[best], values[best]
    return Peak(peak, top, visited)


def _first_best(known: dict[int, float]) -> int:
    """The best position; of equals the one that was visited first."""
    return max(known, key=known.__getitem__)
