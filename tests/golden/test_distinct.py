"""Batches without duplicates are those of the definition (tests/golden/distil_adapt.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlkd_cli.data.loading.choices import ColumnKeys
from vlkd_cli.data.loading.distinct import DistinctOrder, plan
from vlkd_cli.data.loading.order import EpochOrder
from vlkd_cli.errors import DataError

CASES = [
    case
    for case in json.loads(
        (Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8")
    )["cases"]
    if case["kind"] == "distinct_batches"
]


def test_there_are_cases() -> None:
    assert len(CASES) == 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_steps_and_what_is_left_over(case: dict[str, Any]) -> None:
    hyper, expected = case["hyper"], case["expected"]
    keys = eval(hyper["keys"], {"numpy": np})
    order = EpochOrder(hyper["rows"], seed=hyper["run_seed"])
    rows = order.rows(hyper["epoch"], 0, hyper["rows"])
    assert rows.tolist() == case["order"]
    found = plan(keys[rows], hyper["global_batch"])
    assert rows[found.steps].tolist() == expected["batches"]
    assert found.left_over == len(expected["left_over"])
    assert sorted(set(rows) - set(rows[found.steps].ravel())) == expected["left_over"]
    if not expected["batches"]:
        with pytest.raises(DataError, match="no step of 4 samples over all processes"):
            DistinctOrder(order, ColumnKeys(keys), step_rows=4, what="caption")
