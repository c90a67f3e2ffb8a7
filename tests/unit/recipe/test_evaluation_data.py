"""Which data a suite measures where its entry names none."""

from __future__ import annotations

from typing import Any

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.evaluation_data import default_data, with_data
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.schema import Recipe

TOWERS = """
towers:
  image: {builder: timm, model: resnet10t, head: {name: linear, width: 8}}
  text: {builder: openclip, config: {layers: 1, width: 32, heads: 2, embed_dim: 8}}
"""


def recipe(rest: str) -> Recipe:
    return parse_recipe(TOWERS + rest, "r.yaml")


LABELED = {"reader": "classification", "path": "birds", "split": "test"}
PAIRED = {"reader": "coco", "path": "pairs.json"}
EVALS = """
data: {reader: csv, path: pairs.csv}
evals:
  - {suite: retrieval, data: {reader: coco, path: pairs.json}}
  - {suite: sts, data: sentences}
  - {suite: zero_shot, data: {reader: classification, path: birds, split: test}}
"""


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        ("knn", {"data": LABELED}),
        ("clustering", {"data": LABELED}),
        ("feature_analysis", {"data": PAIRED}),
        ("captioned", {"data": LABELED}),
    ],
)
def test_a_suite_takes_the_first_evaluation_data_that_offers_what_it_needs(
    suite: str, expected: dict[str, Any]
) -> None:
    assert default_data(recipe(EVALS), suite) == expected


def test_training_data_of_an_entry_goes_with_its_data() -> None:
    only_last = recipe(
        "evals: [{suite: linear_probe, data: {reader: classification, path: cars},"
        " train_data: {reader: classification, path: more}}]"
    )
    assert default_data(only_last, "knn") == {
        "data": {"reader": "classification", "path": "cars"},
        "train_data": {"reader": "classification", "path": "more"},
    }
    assert set(default_data(only_last, "zero_shot")) == {"data"}


def test_a_name_is_taken_by_suites_that_need_the_same() -> None:
    named = recipe("evals: [{suite: zero_shot, data: birds}]")
    assert default_data(named, "knn") == {"data": "birds"}
    assert default_data(named, "retrieval") == {}


def test_rendered_shapes_are_for_towers_that_are_trained_on_them() -> None:
    shapes = recipe(
        "data: {reader: shapes, size_px: 48, num_samples: 99, seed: 3, workers: 0}\n"
        "evals: [{suite: zero_shot}]"
    )
    expected = {"data": {"reader": "shapes", "size_px": 48, "split": "val"}}
    assert default_data(shapes, "knn") == expected
    assert with_data(shapes, shapes.evals[0]).keys == expected
    mixed = "data: {readers: [{reader: shapes, weight: 1}, {reader: csv, path: p.csv, weight: 1}]}"
    assert default_data(recipe(mixed), "knn") == {}


def test_an_entry_without_data_is_refused_by_the_check() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe("data: {reader: csv, path: p.csv}\nevals:\n  - {suite: knn}\n  - {suite: sts}\n")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("r.yaml:7: evals[0].suite: 'knn' has no data to measure. Give it `data:")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{suite: sts, tower: texts}", "no tower 'texts'. Did you mean 'text'?"),
        ("{suite: sts, tower: image}", "'sts' measures towers for text, and 'image' is one for"),
    ],
)
def test_the_tower_of_an_entry_has_the_suite_s_modality(entry: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"evals\[0\].tower") as caught:
        recipe(f"evals: [{entry}]")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{suite: knn, min_group: 5, data: {reader: csv, path: a.csv, label: y}}",
            "evals[0].min_group: has no effect: reader 'csv' gives no groups. Name the column",
        ),
        (
            "{suite: retrieval, languages: all, data: {reader: coco, path: a.json}}",
            "evals[0].languages: has no effect: reader 'coco' has captions in one language only.",
        ),
        (
            "{suite: caption_choice, data: {reader: coco, path: a.json}}",
            "evals[0].data: 'caption_choice' needs right and wrong captions, and reader 'coco'",
        ),
    ],
)
def test_keys_that_the_data_cannot_serve_are_refused_by_the_check(entry: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(f"evals: [{entry}]")
    assert message in str(caught.value) and "r.yaml:" in str(caught.value)


def test_keys_that_the_data_serves_are_accepted() -> None:
    assert recipe(
        "evals:\n"
        "  - {suite: knn, min_group: 5, data: {reader: csv, path: a.csv, label: y, group: place}}\n"
        "  - {suite: retrieval, languages: [de], data: {reader: multilingual, path: xtd}}\n"
        "  - {suite: caption_choice, min_group: 3, data: {reader: choices, path: a.json}}\n"
    ).evals


def test_a_column_of_groups_is_left_out_for_suites_that_give_no_figures_by_group() -> None:
    grouped = {"reader": "csv", "path": "a.csv", "label": "y", "group": "place"}
    entry = recipe(f"evals: [{{suite: knn, data: {grouped}}}]")
    assert default_data(entry, "zero_shot")["data"] == grouped
    assert "group" not in default_data(entry, "clustering")["data"]
