"""Recipes whose samples match off the diagonal, from reader to loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import TEXT, tiny_recipe, train
from vlkd_cli.data.views import keys_of_captions
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
        ({"positives": "captions"}, "distillers[0].positives"),
        ({"positives": "caption", "graded": True}, "needs targets, and reader 'shapes' has none"),
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


def test_a_weight_without_positives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="positive_weight has no effect without positives"):
        train(tmp_path, recipe_of({"positive_weight": 0.5}))


def test_grades_above_one_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,caption {n % 2},{2.0 * (n % 2)}\n" for n in range(8))
    (tmp_path / "pairs.csv").write_text("filepath,title,score\n" + rows, encoding="utf-8")
    from PIL import Image

    for n in range(8):
        Image.new("RGB", (32, 32), (n * 20, 0, 0)).save(tmp_path / f"{n}.png")
    data = {"reader": "csv", "path": str(tmp_path / "pairs.csv"), "target": "score"}
    recipe = recipe_of({"positives": "caption", "graded": True})
    recipe["data"] = {**data, "augment": {"name": "none"}, "workers": 0}
    recipe["train"]["batch_size"] = 4
    with pytest.raises(UserError, match="targets go up to 2, and a grade is in 0 to 1"):
        train(tmp_path, recipe)


def test_chunks_change_nothing(tmp_path: Path) -> None:
    recipe = recipe_of({"positives": "caption"})
    recipe["towers"]["text"] = {**TEXT, "head": {"name": "linear", "width": 16}}
    whole = losses(tmp_path, "whole", recipe)
    recipe["train"]["chunk"] = 3
    assert losses(tmp_path, "chunked", recipe) == pytest.approx(whole, rel=1e-5)
    assert torch.tensor(whole).isfinite().all()
