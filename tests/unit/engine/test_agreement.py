"""Processes with different recipes, data or weights are refused before the first step."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch

from tests.support.ranks import run_on_ranks
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.agreement import open_everywhere, refuse_other_recipes, refuse_other_weights
from vlkd_cli.errors import DataError, UserError

RECIPE = {"towers": {}, "optimizer": {"lr": 0.1}, "data": {"path": "a"}, "reports": ["csv"]}


def _error_of(what: str) -> str | None:
    second = runtime.rank() == 1
    try:
        if what == "recipe":
            recipe = RECIPE | ({"optimizer": {"lr": 0.2}} if second else {})
            refuse_other_recipes(json.dumps(recipe), torch.device("cpu"))
        elif what == "places":
            recipe = RECIPE | ({"data": {"path": "b"}, "reports": []} if second else {})
            refuse_other_recipes(json.dumps(recipe), torch.device("cpu"))
        elif what == "missing data":
            open_everywhere(_missing if second else _shapes)
        elif what == "other data":
            open_everywhere(_more_shapes if second else _shapes)
        elif what == "weights":
            refuse_other_weights([_Tower("image", "a"), _Tower("text", "c" if second else "b")])
    except UserError as error:
        return str(error)
    return None


class _Tower(NamedTuple):
    name: str
    weights: str

    def digest(self) -> str:
        return self.weights


def _shapes() -> Shapes:
    return Shapes(split="val", num_samples=8, size_px=32)


def _more_shapes() -> Shapes:
    return Shapes(split="val", num_samples=9, size_px=32)


def _missing() -> Shapes:
    raise DataError("pairs.csv: no such file")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("recipe", "node 0 (127.0.0.1) has recipe.optimizer.lr 0.2, node 0 (127.0.0.1) has 0.1."),
        ("other data", "has data.fingerprint"),
        ("weights", 'has towers.text "c", node 0 (127.0.0.1) has "b".'),
    ],
)
def test_both_processes_name_the_first_difference(what: str, line: str) -> None:
    first, second = run_on_ranks(_error_of, 2, what)
    assert first == second and line in first


def test_missing_data_is_reported_on_every_process() -> None:
    first, second = run_on_ranks(_error_of, 2, "missing data")
    assert first == "node 0 (127.0.0.1): pairs.csv: no such file"
    assert second == "pairs.csv: no such file"


def test_places_and_reports_may_differ() -> None:
    assert run_on_ranks(_error_of, 2, "places") == [None, None]


def test_one_process_compares_nothing() -> None:
    refuse_other_recipes(json.dumps(RECIPE), torch.device("cpu"))
    assert len(open_everywhere(_shapes)) == 8
