"""Spread, differences, tests and averages equal the golden numbers and known formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlkd_cli.numerics.statistics import (
    average_columns,
    bootstrap_difference,
    holm,
    mcnemar,
    paired_difference,
    summarize,
    wilson,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "many_runs.json").read_text())
STATISTICS = GOLDEN["statistics"]


def close(value: object) -> object:
    return pytest.approx(value, abs=1e-9, rel=1e-9)


def test_the_goldens_are_there():
    assert {name: len(cases) for name, cases in STATISTICS.items()} == {
        "one_sample": 2,
        "paired_over_seeds": 2,
        "mcnemar_exact": 4,
        "holm": 1,
        "paired_bootstrap": 2,
        "wilson": 5,
    }


@pytest.mark.parametrize("case", STATISTICS["one_sample"])
def test_summary_over_seeds_equals_the_golden(case):
    found = summarize(case["a"])
    for name in ("n", "mean", "sd", "low", "high"):
        expected = case[name]
        assert getattr(found, name) == (None if expected is None else close(expected)), name


@pytest.mark.parametrize("case", STATISTICS["paired_over_seeds"])
def test_difference_over_seeds_equals_the_golden_and_scipy(case):
    found = paired_difference(case["a"], case["b"])
    assert found is not None
    assert found.n == case["n"]
    assert found.mean == close(case["mean_difference"])
    assert found.sd == close(case["sd_difference"])
    assert (found.low, found.high) == close((case["scipy_low"], case["scipy_high"]))
    assert found.p == close(case["p"])


def test_one_pair_has_no_difference():
    assert paired_difference([0.5], [0.4]) is None


@pytest.mark.parametrize(("b", "p"), [([0.5, 0.5], 1.0), ([0.25, 0.25], 0.0)])
def test_equal_differences_have_an_interval_of_no_width(b, p):
    found = paired_difference([0.5, 0.5], b)
    assert found is not None
    assert (found.low, found.high, found.p) == (found.mean, found.mean, p)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="no values"):
        summarize([])


@pytest.mark.parametrize("case", STATISTICS["mcnemar_exact"])
def test_mcnemar_equals_the_golden(case):
    assert mcnemar(case["only_a_right"], case["only_b_right"]) == close(case["p_exact"])


@pytest.mark.parametrize("case", STATISTICS["holm"])
def test_holm_equals_the_golden(case):
    assert holm(case["p"]) == close(case["adjusted"])


def test_holm_preserves_the_given_order_and_ends_at_1():
    assert holm([0.9, 0.001, 0.8]) == close([1.0, 0.003, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize("case", STATISTICS["paired_bootstrap"])
def test_bootstrap_over_items_equals_the_golden(case):
    found = bootstrap_difference(case["differences"], case["groups"])
    assert (found.mean, found.low, found.high) == close(
        (case["difference"], case["low"], case["high"])
    )


def test_bootstrap_does_not_depend_on_the_names_of_groups():
    case = STATISTICS["paired_bootstrap"][1]
    renamed = [7 * group + 3 for group in case["groups"]]
    assert bootstrap_difference(case["differences"], renamed) == bootstrap_difference(
        case["differences"], case["groups"]
    )


@pytest.mark.parametrize("case", STATISTICS["wilson"])
def test_wilson_equals_the_golden(case):
    assert wilson(case["right"], case["n"]) == close((case["low"], case["high"]))


@pytest.mark.parametrize("case", GOLDEN["aggregation"])
def test_averages_over_columns_equal_the_golden(case):
    found = average_columns(case["values"], case["chance"], case["lower_is_better"])
    assert found.common_columns == case["common_columns"]
    assert found.mean == close(case["mean"])
    assert found.normalized_mean == close(case["normalized_mean"])
    assert found.mean_rank == close(case["mean_rank"])


def test_a_column_that_a_target_cannot_have_is_still_common():
    values = [[0.8, 0.6, 0.3], [0.6, 0.5, 0.1], [None, 0.7, None]]
    possible = [[True, True, True], [True, True, True], [False, True, True]]
    found = average_columns(values, [0.5, 0.0, 0.0], [False] * 3, possible)
    assert found.common_columns == [0, 1]  # the last one failed for a target that could have it
    assert found.mean == close([0.7, 0.55, 0.7])
    assert found.normalized_mean == close([0.6, 0.35, 0.7])
    assert found.mean_rank == close([1.5, 2.5, 1.0])


def test_targets_without_a_common_column_have_no_averages():
    found = average_columns([[0.5, None], [None, 0.5]], [0.1, 0.1], [False, False])
    assert found == ([], [None, None], [None, None], [None, None])
