"""Accuracy by group."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.fakes import FakeReader
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.metrics.groups import (
    check_min_group,
    figures_by_group,
    group_metrics,
    group_rows,
)
from vlkd_cli.numerics.statistics import wilson


def test_fractions_of_draws_are_counted_as_they_are() -> None:
    (row,) = group_rows(np.array([1.0, 0.5, 0.0]), ["a"] * 3)
    assert (row["n"], row["right"], row["share"]) == (3, 1.5, 0.5)
    low, high = wilson(1, 3)[0], wilson(2, 3)[1]
    assert low < row["low"] < 0.5 < row["high"] < high


def test_the_worst_group_is_one_of_those_that_are_large_enough() -> None:
    groups = ["a"] * 10 + ["b"] * 20 + ["c"] * 3
    hits = np.array([True] * 9 + [False] + [True] * 10 + [False] * 10 + [False] * 3)
    rows = group_rows(hits, groups)
    assert [(row["group"], row["n"], row["right"]) for row in rows] == [
        ("a", 10, 9),
        ("b", 20, 10),
        ("c", 3, 0),
    ]
    assert rows[1]["low"] == pytest.approx(wilson(10, 20)[0])
    found = group_metrics(rows)
    assert found["worst_group"] == 0.5
    assert found["group_gap"] == pytest.approx(0.4)
    assert found["average_over_groups"] == pytest.approx((0.9 + 0.5 + 0) / 3)
    assert group_metrics(rows, min_group=1)["worst_group"] == 0
    assert set(group_metrics(rows, min_group=21)) == {"average_over_groups"}


def test_data_without_groups_has_no_figures_and_takes_no_size() -> None:
    reader = FakeReader([0, 1])
    assert figures_by_group(reader, np.array([True, False]), None) == ({}, {})
    with pytest.raises(RecipeError, match="min_group has no effect: the data has no groups"):
        check_min_group("knn", 5, reader)
    with pytest.raises(RecipeError, match="min_group must be at least 1"):
        check_min_group("knn", 0)
