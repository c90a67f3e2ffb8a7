"""What an evaluation leaves per item and for the report page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.fakes import COLORED
from tests.support.suite_cases import knowing_classes, knowing_nothing
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.evaluation import shown
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.recipe.schema import EvalSpec


class Pictures(Reader):
    """Three files and two rendered pictures; the last file is missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for n in range(2):
            Image.new("RGB", (300, 200), (n * 100, 0, 0)).save(folder / f"{n}.png")

    def __len__(self) -> int:
        return 5

    def image(self, index):
        if index == 4:
            raise Broken("no such row")
        if index < 3:
            return str(self.folder / f"{index}.png")
        return Image.new("RGB", (60, 40), (0, 200, 0))


def test_items_of_a_classification_say_who_was_right_and_by_how_much():
    scores = torch.tensor([[0.5, 0.25, 0.0], [0.5, 0.25, 0.0], [0.0, 0.25, 1.0]])
    found = shown.classification_items(scores, torch.tensor([0, 1, 2]))
    assert found["predicted"].tolist() == [0, 0, 2] and found["predicted"].dtype == np.uint16
    assert found["margin"].tolist() == [0.25, -0.25, 0.75]
    assert np.unpackbits(found["right"], count=3).tolist() == [1, 0, 1]


def test_misses_are_the_worst_ranks_and_hits_the_highest_cosines_of_distinct_images(tmp_path):
    images = torch.eye(5)
    texts = torch.eye(5)[[0, 0, 1, 3, 2]]
    owner = torch.tensor([0, 0, 1, 2, 3])
    ranks = torch.tensor([1, 1, 1, 4, 5])
    captions = ["a", "b", "c", "d", "e"]
    found = shown.retrieval_shown(images, texts, owner, ranks, captions, Pictures(tmp_path))
    assert [row["caption"] for row in found.lists["misses"]] == ["e", "d"]
    assert [row["rank"] for row in found.lists["misses"]] == [5, 4]
    assert [row["caption"] for row in found.lists["hits"]] == ["a", "c"]
    assert found.lists["misses"][0]["found"][0] == [2, 1.0]
    assert found.lists["map_captions"] == ["a", "c", "d", "e"]
    assert found.arrays["map"].shape == (2, 4, 2)


def test_confusions_are_the_largest_with_the_surest_mistakes_first(tmp_path):
    labels = torch.tensor([0, 0, 0, 1, 1])
    scores = torch.tensor([[0.0, 0.5], [0.0, 0.9], [0.9, 0.0], [0.7, 0.0], [0.0, 0.9]])
    found = shown.classification_shown(
        scores, labels, torch.eye(5), ["cat", "dog"], Pictures(tmp_path)
    )
    first, second = found.lists["confusions"]
    assert (first["class"], first["taken_for"], first["images"], first["of"]) == (
        "cat",
        "dog",
        2,
        3,
    )
    assert first["found"] == [[1, 0.9, 0.0], [0, 0.5, 0.0]]
    assert (second["class"], second["images"]) == ("dog", 1)


def test_pictures_are_paths_where_there_is_a_file_else_thumbnails(tmp_path):
    found = shown.pictures_of(Pictures(tmp_path), [0, 3, 4, 2, 0])
    assert list(found) == [0, 3, 2]
    assert found[0] == str(tmp_path / "0.png")
    assert isinstance(found[3], bytes) and found[3][8:12] == b"WEBP"
    assert Image.open(shown.io.BytesIO(found[3])).size == (40, 40)


def test_the_map_takes_the_gap_between_modalities_out():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = shown.feature_map(features, features + torch.tensor([9.0, 0, 0, 0]))
    np.testing.assert_allclose(found["map"][0], found["map"][1], atol=1e-5)
    assert 0 < found["map_variance"] <= 1


@pytest.mark.parametrize(
    "features", [torch.ones(8, 4), torch.eye(2), torch.full((4, 4), torch.nan)]
)
def test_features_without_two_axes_have_no_map(features):
    assert shown.feature_map(features) == {}


@pytest.mark.parametrize("suite", ["zero_shot", "retrieval"])
def test_a_result_leaves_its_items_and_its_page(tmp_path, suite):
    spec = {"suite": suite, "data": {"reader": COLORED, "num_samples": 32}}
    subject = knowing_classes() if suite == "zero_shot" else knowing_nothing()
    run_suites(subject, [EvalSpec.model_validate(spec)], folder=tmp_path)
    (file,) = tmp_path.glob("*.json")
    stem = file.name.removesuffix(".json")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{stem}.json",
        f"{stem}.items.npz",
        f"{stem}.map.npz",
    }
    result = json.loads(file.read_text())
    assert "items" not in result and "shown" not in result
    with np.load(tmp_path / f"{stem}.items.npz") as items:
        right = (
            np.unpackbits(items["right"], count=32).mean()
            if suite == "zero_shot"
            else (items["caption_rank"] <= 1).mean()
        )
    name = "top1" if suite == "zero_shot" else "text_to_image_R@1"
    assert right == pytest.approx(result["metrics"][name])
    with np.load(tmp_path / f"{stem}.map.npz") as page:
        lists = json.loads(str(page["lists"]))
        assert len(lists["map_captions"]) == page["map"].shape[1] == 32
        for row in lists.get("hits", []):
            start, stop = lists["pictures"][str(row["image"])]
            assert page["thumbnails"][start:stop].tobytes()[8:12] == b"WEBP"


def test_items_can_be_left_out(tmp_path):
    spec = {"suite": "retrieval", "data": {"reader": COLORED, "num_samples": 8}, "items": False}
    run_suites(knowing_nothing(), [EvalSpec.model_validate(spec)], folder=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
