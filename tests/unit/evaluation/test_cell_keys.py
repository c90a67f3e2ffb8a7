"""The key of a measurement is known before it runs, and changes with all that changes numbers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.suite_cases import SUITE_CASES
from vlkd_cli.evaluation.results import cell_key
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.evaluation_data import reads_data_sets

BASE: dict[str, Any] = {
    "suite": "knn",
    "version": 1,
    "keys": {"k": [20]},
    "hashes": {"rows": "a"},
    "weights": {"image": "b"},
    "precision": "fp32",
}


def test_the_key_is_12_digits_of_canonical_json() -> None:
    assert cell_key(**BASE) == cell_key(**dict(reversed(BASE.items())))
    assert len(cell_key(**BASE)) == 12


@pytest.mark.parametrize(
    "other",
    [
        {"suite": "few_shot"},
        {"version": 2},
        {"keys": {"k": [10]}},
        {"hashes": {"rows": "c"}},
        {"weights": {"image": "d"}},
        {"weights": {"text": "b"}},
        {"precision": "bf16"},
    ],
)
def test_whatever_changes_numbers_changes_the_key(other: dict[str, Any]) -> None:
    assert cell_key(**{**BASE, **other}) != cell_key(**BASE)


TABLED = sorted(name for name in SUITE_CASES if reads_data_sets(name))


@pytest.mark.parametrize("name", TABLED)
def test_every_suite_of_data_sets_knows_its_key_before_it_runs(name: str, tmp_path: Any) -> None:
    case = SUITE_CASES[name](tmp_path)
    suite = make("suite", name, case.keys)
    identity = suite.identity(suite.open(case.perfect))
    assert identity is not None
    (result,) = suite.run(case.perfect)
    assert result.key == suite.cell_key(case.perfect, identity.hashes)
    assert result.file_stem.endswith(result.key)


def test_the_suites_of_data_sets_are_tried() -> None:
    assert {"zero_shot", "knn", "retrieval", "linear_probe", "few_shot"} <= set(TABLED)
