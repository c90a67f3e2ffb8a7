"""The local score: what the server is going to compute from the same numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.elevater.metrics import METRICS


class SetScore(NamedTuple):
    """One data set's metric over its seeds."""

    dataset: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (of the sample); 0 for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def score(
    metric: str, probabilities: NDArray[np.floating], labels: Sequence[Sequence[int]]
) -> float:
    """A data set's metric.

    Args:
        probabilities: `[N, C]`.
        labels: class indices of every row.
    """
    return METRICS[metric](probabilities, targets_of(metric, labels, probabilities.shape[1]))


def targets_of(metric: str, labels: Sequence[Sequence[int]], num_classes: int) -> NDArray[np.int64]:
    """Labels as a metric takes them: `[N]`, or `[N, C]` of zeros and ones for 11-point mAP."""
    if metric != "11point_mAP":
        return np.array([own[0] for own in labels], dtype=np.int64)
    targets = np.zeros((len(labels), num_classes), dtype=np.int64)
    for row, own in enumerate(labels):
        targets[row, list(own)] = 1
    return targets


def average(scores: Sequence[SetScore], wanted: Mapping[str, object]) -> float | None:
    """The leaderboard's number: the plain mean over data sets; None unless every one of `wanted` is
    there."""
    by_name = {entry.dataset: entry.mean for entry in scores}
    if not wanted or any(name not in by_name for name in wanted):
        return None
    return statistics.fmean(by_name[name] for name in wanted)
