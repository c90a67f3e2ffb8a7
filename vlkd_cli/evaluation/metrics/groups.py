"""Accuracy by group: the worst one, and how far groups are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from vlkd_cli import console
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import RecipeError
from vlkd_cli.numerics.statistics import wilson

MIN_GROUP = 10
"""Items that a group needs by default to be the worst one: of fewer, chance decides."""
GROUP_METRICS = ("worst_group", "group_gap", "average_over_groups")


Hits = NDArray[np.bool_] | NDArray[np.float64]
"""Whether each item is right, `[N]`, or in which fraction of several draws it is."""


class GroupRow(TypedDict):
    """How many items of a group are right: `right` of `n`, as a fraction `share` with the bounds of
    its 95 % Wilson interval."""

    group: str
    n: int
    right: float
    share: float
    low: float
    high: float


def group_rows(hits: Hits, groups: Sequence[str]) -> list[GroupRow]:
    """Figures of each group, in alphabetical order.

    Args:
        groups: of each item; those without a name are left out.
    """
    names, positions = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    sizes = np.bincount(positions, minlength=len(names))
    sums = np.bincount(positions, weights=hits, minlength=len(names))
    right = sums.astype(np.int64) if hits.dtype == np.bool_ else sums
    rows: list[GroupRow] = []
    for name, n, k in zip(names.tolist(), sizes.tolist(), right.tolist(), strict=True):
        if name:
            low, high = wilson(k, n)
            rows.append(
                {"group": name, "n": n, "right": k, "share": k / n, "low": low, "high": high}
            )
    return rows


def group_metrics(rows: Sequence[GroupRow], min_group: int = MIN_GROUP) -> dict[str, float]:
    """`worst_group`: the lowest share among groups of at least `min_group` items; `group_gap`: the
    highest of these minus the lowest; `average_over_groups`: the mean over all groups. Without a
    group that is large enough, only the last.
    """
    if not rows:
        return {}
    large = [row["share"] for row in rows if row["n"] >= min_group]
    found = {"worst_group": min(large), "group_gap": max(large) - min(large)} if large else {}
    return {**found, "average_over_groups": float(np.mean([row["share"] for row in rows]))}


def figures_by_group(
    reader: Reader, hits: Hits, min_group: int | None
) -> tuple[dict[str, float], dict[str, object]]:
    """Metrics and details by group; nothing where the data has no groups.

    Args:
        hits: of each sample of the reader.
        min_group: see `group_metrics`; None: 10.
    """
    if not reader.has_groups:
        return {}, {}
    rows = group_rows(hits, [reader.group(index) for index in range(len(reader))])
    least = MIN_GROUP if min_group is None else min_group
    metrics = group_metrics(rows, least)
    if rows and "worst_group" not in metrics:
        console.warn_once(
            f"worst_group is left out: no group has {least} items, the largest has"
            f" {max(row['n'] for row in rows)}. Set min_group."
        )
    return metrics, {"groups": rows, "min_group": least}


def check_min_group(suite: str, min_group: int | None, reader: Reader | None = None) -> None:
    """Refuse a size that cannot be, or that nothing is counted by.

    Raises:
        RecipeError: it is below 1, or the data has no groups.
    """
    if min_group is None:
        return
    if min_group < 1:
        raise RecipeError(f"suite '{suite}': min_group must be at least 1.")
    if reader is not None and not reader.has_groups:
        raise RecipeError(
            f"suite '{suite}': min_group has no effect: the data has no groups. Name the column of"
            " the group in its data (`group: COLUMN`), or leave min_group out."
        )
