"""Statistics of comparisons: spread over seeds, paired differences, tests and averages over tables.

Everything takes and returns plain numbers; numpy and scipy are imported when something is computed.
Numbers agree with `tests/golden/many_runs.json` to 1e-9.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

RESAMPLES = 2000
"""Resamples of the paired bootstrap, computed in blocks of 100."""


class Summary(NamedTuple):
    """Values over seeds. With one value there is no spread: `sd`, `low` and `high` are None."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """Mean of a - b over n pairs with its 95 % interval; `p` of the two-sided test against 0."""

    n: int
    mean: float
    sd: float | None
    low: float
    high: float
    p: float | None


class Averages(NamedTuple):
    """Summaries per target over the columns in which every target has a value that can have one."""

    common_columns: list[int]
    mean: list[float | None]
    normalized_mean: list[float | None]
    mean_rank: list[float | None]


def summarize(values: Sequence[float]) -> Summary:
    """n, mean, standard deviation (n - 1) and the 95 % t interval of the mean.

    Raises:
        ValueError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, None, None, None)
    from scipy.stats import t

    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """Difference over seeds, `a[i]` and `b[i]` being of one seed; None below two pairs.

    Equal differences have an interval of no width, and p is 1 where they are 0, else 0.
    """
    if len(a) < 2:
        return None
    differences = [x - y for x, y in zip(a, b, strict=True)]
    summary = summarize(differences)
    assert summary.sd is not None and summary.low is not None and summary.high is not None
    if summary.sd == 0:
        p = 1.0 if summary.mean == 0 else 0.0
    else:
        from scipy.stats import t

        statistic = summary.mean / (summary.sd / math.sqrt(summary.n))
        p = float(2 * t.sf(abs(statistic), summary.n - 1))
    return Difference(summary.n, summary.mean, summary.sd, summary.low, summary.high, p)


def bootstrap_difference(differences: Sequence[float], groups: Sequence[int]) -> Difference:
    """Difference on the same items with its paired bootstrap interval.

    Whole groups (an image with its captions) are sampled with replacement, 2,000 times with seed
    0; the statistic is the sum of the differences over the number of items.

    Raises:
        ValueError: there are no items, or not one group per item.
    """
    import numpy as np

    values, labels = np.asarray(differences, dtype=np.float64), np.asarray(groups)
    if not len(values) or len(values) != len(labels):
        raise ValueError("one group per item, and at least one item")
    _, positions = np.unique(labels, return_inverse=True)
    sums, counts = np.bincount(positions, weights=values), np.bincount(positions)
    rng, total = np.random.default_rng(0), len(sums)
    statistics = []
    for _ in range(RESAMPLES // 100):
        chosen = rng.integers(0, total, (100, total))
        statistics.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    low, high = np.quantile(np.concatenate(statistics), [0.025, 0.975])
    return Difference(len(values), float(values.mean()), None, float(low), float(high), None)


def wilson(right: float, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the fraction `right / total`; `right` may be a mean over draws.

    Raises:
        ValueError: there are no items.
    """
    if total < 1:
        raise ValueError("no items")
    z = NormalDist().inv_cdf(0.975)
    middle = (right + z * z / 2) / (total + z * z)
    half = z / (total + z * z) * math.sqrt(right * (total - right) / total + z * z / 4)
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == total else middle + half


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Two-sided p of McNemar's exact test; 1 where the two are right on the same items."""
    total = only_a_right + only_b_right
    if total == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(min(only_a_right, only_b_right), total, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for several comparisons (Holm, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def average_columns(
    values: Sequence[Sequence[float | None]],
    chance: Sequence[float | None],
    lower_is_better: Sequence[bool],
    possible: Sequence[Sequence[bool]] | None = None,
) -> Averages:
    """Mean, chance-normalized mean and mean rank of targets (rows) over their common columns.

    Columns where lower is better (ranks, errors) count for the rank only. `normalized_mean` is the
    mean of (value - chance) / (1 - chance) and uses columns with a known chance. Rank 1 is best,
    ties share their average rank. What has no column is None.

    Args:
        possible: whether a target can have a value in a column; by default always. One that cannot
            (it lacks a tower) excludes no column, and is averaged over the others.
    """
    common = [
        column
        for column in range(len(chance))
        if all(
            row[column] is not None or (possible is not None and not possible[number][column])
            for number, row in enumerate(values)
        )
        and any(row[column] is not None for row in values)
    ]
    shares = [column for column in common if not lower_is_better[column]]
    ranks = [_ranks([row[column] for row in values], lower_is_better[column]) for column in common]
    mean, normalized = [], []
    for row in values:
        own = {column: value for column in shares if (value := row[column]) is not None}
        mean.append(_mean(list(own.values())))
        normalized.append(
            _mean(
                [
                    (value - base) / (1 - base)
                    for column, value in own.items()
                    if (base := chance[column]) is not None and base != 1
                ]
            )
        )
    mean_rank = [
        _mean([rank for column in ranks if (rank := column[number]) is not None])
        for number in range(len(values))
    ]
    return Averages(common, mean, normalized, mean_rank)


def _ranks(column: Sequence[float | None], lower_is_better: bool) -> list[float | None]:
    """Among those that have a value."""
    keys = [value if value is None or lower_is_better else -value for value in column]
    known = [key for key in keys if key is not None]
    return [
        None if key is None else sum(k < key for k in known) + (known.count(key) + 1) / 2
        for key in keys
    ]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
