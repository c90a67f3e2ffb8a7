"""Recipes whose samples match off the diagonal, from reader to loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.engine.recipes import TEXT, tiny_recipe, train, write_recipe
from vlkd_cli.data.views import keys_of_captions
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.reports.csv import read_metrics


def recipe_of(distiller: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return tiny_recipe(
        distillers=[{"name": "infonce", **distiller}],
        data={"num_samples": 16, "augment": {"name": "none"}, **sections.pop("data", {})},
        train={"epochs": 1},
        **sections,
    )


def losses(folder: Path, name: str, recipe: dict[str, Any]) -> list[float]:
    place = folder / name
    place.mkdir()
    return [value for _, value in read_metrics(train(place, recipe))["train/loss"]]


def test_captions_that_differ_in_white_space_have_one_key_and_empty_ones_none() -> None:
    keys = keys_of_captions(["a dog", " a \n dog ", "A dog", "", "  "])
    assert keys[0] == keys[1] != keys[2] and min(keys[:3]) >= 0
    assert keys[3:].tolist() == [-1, -1]


def test_cached_captions_match_like_read_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    head = {"name": "linear", "width": 16}
    found = [
        losses(
            tmp_path,
            name,
            recipe_of(
                {"positives": "caption"},
                towers={"text": {**TEXT, "train": "head", "head": head, "cache": cached}},
            ),
        )
        for name, cached in (("cached", True), ("read", False))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_labels_and_weights_change_the_loss(tmp_path: Path) -> None:
    keys: list[dict[str, Any]] = [{}, {"positives": "label"}]
    keys.append({"positives": "label", "positive_weight": 0.5})
    first = {losses(tmp_path, str(n), recipe_of(each))[0] for n, each in enumerate(keys)}
    assert len(first) == 3


@pytest.mark.parametrize(
    ("distiller", "line"),
    [
        (
            {"positives": "captions"},
            "distillers[0].positives: reader 'shapes' has no column 'captions'. Did you mean"
            " 'caption'? Known: diagonal, caption, label, color, shape, size, position,",
        ),
        ({"positives": "caption", "grade": "hue"}, "reader 'shapes' has no column 'hue'."),
        (
            {"positive_weight": 0.5},
            "distillers[0].positive_weight: has no effect without",
        ),
        ({"grade": "color"}, "distillers[0].grade: has no effect without positives."),
        (
            {"positives": "caption", "grade": "color", "positive_weight": 0.5},
            "distillers[0].positive_weight: has no effect with a grade. Remove one of them.",
        ),
    ],
)
def test_what_the_reader_lacks_is_reported_before_anything_is_built(
    tmp_path: Path, distiller: dict[str, Any], line: str
) -> None:
    import yaml

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_of(distiller)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(str(path), to_train=True)
    assert line in str(caught.value) and "r.yaml:" in str(caught.value)


def table_of(folder: Path, scores: list[float | str]) -> dict[str, Any]:
    """A table of pictures whose captions repeat, with a column of products and one of scores."""
    rows = [
        f"{n}.png,caption {n % 2},p{n % 3 if n % 3 else ''},{score}"
        for n, score in enumerate(scores)
    ]
    header = "filepath,title,product,score"
    (folder / "pairs.csv").write_text("\n".join([header, *rows, ""]), encoding="utf-8")
    for n in range(len(scores)):
        Image.new("RGB", (32, 32), (n * 20, 0, 0)).save(folder / f"{n}.png")
    data = {"reader": "csv", "path": str(folder / "pairs.csv"), "augment": {"name": "none"}}
    return {**data, "workers": 0, "shuffle": False}


def test_a_column_matches_samples_and_another_grades_them(tmp_path: Path) -> None:
    found = []
    for number, distiller in enumerate(
        (
            {},
            {"positives": "product"},
            {"positives": "product", "grade": "score"},
        )
    ):
        recipe = recipe_of(distiller)
        recipe["data"] = table_of(tmp_path, [0.5, 1, 0, 0.25, 0.5, 1, 0, 0.25])
        found.append(losses(tmp_path, str(number), recipe)[0])
    assert len(set(found)) == 3


@pytest.mark.parametrize("score", [2.0, "many"])
def test_other_grades_than_0_to_1_are_refused_with_their_row(tmp_path: Path, score: Any) -> None:
    recipe = recipe_of({"positives": "caption", "grade": "score"})
    recipe["data"] = table_of(tmp_path, [0.0, 1.0, 0.5, score, 0.0, 1.0, 0.0, 1.0])
    with pytest.raises(UserError, match=f"3.png: column 'score' is '{score}', and a grade is a"):
        train(tmp_path, recipe)


def test_the_first_line_of_a_run_names_the_fraction_of_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of({}, data={"num_samples": 64})
    recipe["data"] |= {"reader": "csv", **table_of(tmp_path, [0.0] * 8)}
    for key in ("num_samples", "size_px"):
        del recipe["data"][key]
    start_training(
        TrainRequest(recipe=write_recipe(tmp_path, recipe), quiet=False, run=tmp_path / "run")
    )
    message = capsys.readouterr()
    assert "Duplicate captions in a step: 100.0% of the rows." in message.out + message.err


def test_chunks_change_nothing(tmp_path: Path) -> None:
    recipe = recipe_of({"positives": "caption"})
    recipe["towers"]["text"] = {**TEXT, "head": {"name": "linear", "width": 16}}
    whole = losses(tmp_path, "whole", recipe)
    recipe["train"]["chunk"] = 3
    assert losses(tmp_path, "chunked", recipe) == pytest.approx(whole, rel=1e-5)
    assert torch.tensor(whole).isfinite().all()
