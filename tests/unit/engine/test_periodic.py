"""Evaluations of a run: what is checked before its first step."""

from __future__ import annotations

import json
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


def test_the_closing_table_shows_before_after_and_change(tmp_path: Path, capsys) -> None:
    search = {"suite": "search", "relevant": "row", "k": [1], "first": True, "data": EVAL["data"]}
    run = train(tmp_path, tiny_recipe(evals=[search], train={"epochs": 1}))
    lines = capsys.readouterr().out.splitlines()
    header = next(line for line in lines if "before" in line)
    assert header.split() == [*"suite data split metric before after change chance".split()]
    stored = {
        step: json.loads(next((run / "results" / step).glob("search-*.json")).read_text())
        for step in ("step_00000000", "step_00000006")
    }
    before, after = (result["metrics"]["ndcg@1"] for result in stored.values())
    row = next(line.split() for line in lines[lines.index(header) :] if " ndcg@1 " in line)
    assert row[4:7] == [f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"]


def test_without_an_evaluation_before_training_the_table_has_one_value(tmp_path, capsys) -> None:
    train(tmp_path, tiny_recipe(evals=[EVAL], train={"epochs": 1}))
    assert "before" not in capsys.readouterr().out
