"""Evaluations of a run: what is checked before its first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.errors import DataError, RecipeError

EVAL: dict[str, Any] = {
    "suite": "retrieval",
    "k": [1],
    "data": {"reader": "shapes", "split": "val", "num_samples": 4, "size_px": 32},
}


def test_a_wrong_metric_ends_a_run_before_its_first_step(tmp_path: Path) -> None:
    recipe = tiny_recipe(evals=[EVAL], train={"best": "retrieval.text_to_image_R@5"})
    with pytest.raises(RecipeError, match="train.best: 'retrieval' has no metric .* It has: image"):
        train(tmp_path, recipe)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_data_ends_a_run_before_its_first_step_and_names_the_entry(tmp_path: Path) -> None:
    missing = {"suite": "retrieval", "data": {"reader": "csv", "path": str(tmp_path / "no.csv")}}
    with pytest.raises(DataError, match=r"no.csv: no such file. Check evals\[1\].data.path"):
        train(tmp_path, tiny_recipe(evals=[EVAL, missing]))
    assert not list(tmp_path.rglob("*.pt"))
