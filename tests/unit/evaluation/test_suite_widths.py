"""Suites at a width are the suites on the first values of every feature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.launching.start_evaluation import start_evaluation
from vlkd_cli.errors import UserError
from vlkd_cli.features.encode import embed_images, embed_texts
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.load import parse_recipe

SHAPES = {"reader": "shapes", "num_samples": 12, "size_px": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("widths")
    recipe = tiny_recipe(
        distillers=[{"name": "infonce", "widths": [4, 16]}],
        data={"num_samples": 16},
        train={"epochs": 1},
    )
    return train(folder, recipe)


def results(run: Path, tmp_path: Path, *settings: str, suites: str = "retrieval") -> list[Any]:
    output = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    start_evaluation(
        target=str(run),
        suites=suites.split(","),
        suite_settings=[f"data={json.dumps(SHAPES)}", *settings],
        output=output,
        runs=tmp_path,
    )
    return json.loads(output.read_text())


def test_a_suite_at_a_width_is_named_and_stored_apart(run: Path, tmp_path: Path) -> None:
    (whole,), (narrow,), (full,) = (
        results(run, tmp_path, *own) for own in ([], ["width=4"], ["width=16"])
    )
    assert narrow["name"] == "retrieval_4" and narrow["settings"]["width"] == 4
    assert len({whole["key"], narrow["key"], full["key"]}) == 3
    assert full["metrics"] == whole["metrics"] != narrow["metrics"]


def test_features_are_cut_before_they_are_normalized() -> None:
    recipe = parse_recipe(json.dumps({"towers": tiny_recipe()["towers"]}), "here", [])
    towers = load_towers(recipe, None, None)
    subject = Subject(towers["image"], towers["text"])
    cut, reader = subject.at_width(5), Shapes(num_samples=3, size_px=32)
    assert cut.image is not None and cut.text is not None and cut.image.width == 5
    torch.testing.assert_close(embed_images(cut, reader), embed_images(subject, reader)[:, :5])
    texts = ["a red ring", "a blue star"]
    torch.testing.assert_close(embed_texts(cut, texts), embed_texts(subject, texts)[:, :5])
    ours, whole = cut.text.eval(), towers["text"].eval()
    inputs = whole.input(texts)
    torch.testing.assert_close(ours.encode(inputs), whole.encode(inputs)[:, :5])
    # A tower without a head gives its feature; one with a head has another.
    torch.testing.assert_close(
        embed_images(cut, reader, point="backbone"), embed_images(subject, reader)[:, :5]
    )
    with pytest.raises(UserError, match="cuts what the head of tower 'text' gives"):
        embed_texts(cut, texts, point="backbone")


def test_a_width_beyond_the_tower_is_one_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tower 'image' gives 16 values, fewer than width 32"):
        results(run, tmp_path, "width=32")
