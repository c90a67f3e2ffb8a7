"""Recipes with hard negatives, from reader to loss."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.recipes import problems_with
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train
from vlkd_cli.reports.csv import read_metrics

HARD = ["a red disc", "", "caption 2", "a blue disc", "a pink disc", "", "caption 6", "a disc"]


def recipe_of(folder: Path, hard: list[str], distiller: dict[str, Any]) -> dict[str, Any]:
    """Eight pictures in one step; the negatives of two are missing, those of two are their own
    captions."""
    with (folder / "t.csv").open("w", newline="") as file:
        rows = [[f"{n}.png", f"caption {n}", text] for n, text in enumerate(hard)]
        csv.writer(file).writerows([["filepath", "title", "wrong"], *rows])
    for n in range(len(hard)):
        Image.new("RGB", (32, 32), (n * 20, 0, 0)).save(folder / f"{n}.png")
    recipe = tiny_recipe(
        towers={"image": IMAGE, "text": {**TEXT, "head": {"name": "linear", "width": 16}}},
        distillers=[{"name": "infonce", **distiller}],
        train={"epochs": 1},
    )
    recipe["data"] = {"reader": "csv", "path": str(folder / "t.csv"), "texts": {"hard": "wrong"}}
    recipe["data"] |= {"augment": {"name": "none"}, "workers": 0}
    return recipe


def loss(folder: Path, name: str, recipe: dict[str, Any]) -> float:
    place = folder / name
    place.mkdir()
    ((_, value),) = read_metrics(train(place, recipe))["train/loss"]
    return value


def test_negatives_count_once_missing_ones_and_own_captions_not_at_all(tmp_path: Path) -> None:
    def of(name: str, hard: list[str], **keys: Any) -> float:
        return loss(tmp_path, name, recipe_of(tmp_path, hard, keys))

    none = of("none", HARD)
    batch = of("batch", HARD, negatives="text@hard")
    own = of("own", HARD, negatives="text@hard", negatives_of="own")
    assert none < own < batch
    # A row's own caption is left out, another row's is not.
    captions = [f"caption {n}" for n in range(8)]
    assert of("captions", captions, negatives="text@hard", negatives_of="own") == pytest.approx(
        none, rel=1e-6
    )
    assert of("missing", [""] * 8, negatives="text@hard") == pytest.approx(none, rel=1e-6)


def test_chunks_and_cached_texts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    recipe = recipe_of(tmp_path, HARD, {"negatives": "text@hard"})
    recipe["train"]["chunk"] = 3
    assert loss(tmp_path, "chunked", recipe) == pytest.approx(
        loss(tmp_path, "whole", recipe_of(tmp_path, HARD, {"negatives": "text@hard"})), rel=1e-5
    )
    found = []
    for cached in (True, False):
        recipe = recipe_of(tmp_path, HARD, {"negatives": "text@hard"})
        recipe["towers"]["text"] |= {"train": "head", "cache": cached}
        found.append(loss(tmp_path, f"cached {cached}", recipe))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


TABLE = "data={reader: csv, path: a.csv, texts: {hard: wrong}, views: {b: null}}"


@pytest.mark.parametrize(
    ("distiller", "line"),
    [
        ("{name: infonce, negatives: text@hrad}", "no view or text 'hrad'. Did you mean 'hard'"),
        ("{name: infonce, negatives: text}", "'text' is what the distiller compares already"),
        ("{name: infonce, negatives_of: own}", "has no effect without negatives"),
        ("{name: rkd, negatives: text@hard}", "distiller 'rkd' takes no negatives. Remove it."),
        (
            "{name: infonce, student: image, teacher: image@b, negatives: text@hard}",
            "'text@hard' is of another modality than image, image@b.",
        ),
        ("{name: infonce, negatives: image.tokens@b}", "'image.tokens@b' has positions, and"),
        ("{name: infonce, negatives: []}", "an empty list names no output"),
    ],
)
def test_negatives_that_cannot_be_compared_are_refused(distiller: str, line: str) -> None:
    found = problems_with(TABLE, f"distillers=[{distiller}]")
    assert any(line in problem for problem in found), found
