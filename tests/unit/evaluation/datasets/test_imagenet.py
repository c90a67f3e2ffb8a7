"""Variants of ImageNet are columns of one head of 1,000 classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.data_sets import objectnet_data
from tests.support.fakes import FakeTower, color_of
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import open_dataset
from vlkd_cli.evaluation.datasets.imagenet import imagenet_head, masks, wordnet_ids
from vlkd_cli.evaluation.datasets.prompts import named_classes_of
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "many_runs.json").read_text())
NAMES = named_classes_of("open_clip:imagenet", "")
TEMPLATES = {"templates": ["{}"], "items": False}


def pictures(folder: Path, classes: list[str]) -> None:
    """A picture in each class folder, numbered in this order."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), color_of(number)).save(folder / name / "a.png")


def preferring(numbers: dict[int, list[int]], root: Path | None) -> Subject:
    """Each picture prefers ImageNet's classes in the order given."""

    def of_picture(position: int) -> Tensor:
        found = torch.zeros(1000)
        for rank, number in enumerate(numbers[position]):
            found[number] = 1 - 0.1 * rank
        return found

    def of_text(text: str) -> Tensor:
        return torch.eye(1000)[NAMES.index(text)]

    image = FakeTower("image", of_picture, 1000)
    return Subject(image, FakeTower("text", of_text, 1000), data_root=root)


def measured(subject: Subject, data: Any, **keys: Any) -> Any:
    given = {"suite": "zero_shot", "data": data, **TEMPLATES, **keys}
    return run_suites(subject, [EvalSpec.model_validate(given)])[0]


def test_the_masks_are_those_of_clip_benchmark() -> None:
    golden = GOLDEN["imagenet_masks"]
    digest = hashlib.sha256("\n".join(wordnet_ids()).encode()).hexdigest()
    assert digest == golden["wnids_in_label_order_sha256"]
    assert masks() == {name: golden[name] for name in ("imagenet_a", "imagenet_r")}


def test_imagenet_a_takes_its_200_columns_before_the_best_is_chosen(tmp_path: Path) -> None:
    ids, mask = wordnet_ids(), masks()["imagenet_a"]
    pictures(tmp_path / "imagenet-a", [ids[number] for number in mask[:2]])
    # Both prefer class 0, which ImageNet-A lacks; then the first its own, the second another's.
    subject = preferring({0: [0, mask[0]], 1: [0, mask[7], mask[1]]}, tmp_path)
    result = measured(subject, "imagenet_a")
    assert (result.metrics["top1"], result.metrics["top5"]) == (0.5, 1.0)
    assert result.num_classes == 200 and result.chance["top1"] == 1 / 200
    assert result.details["confusions"][0]["taken_for"] == NAMES[mask[7]]


def test_variants_share_one_pass_over_1000_names(tmp_path: Path) -> None:
    ids = wordnet_ids()
    shared = [number for number in masks()["imagenet_a"] if number in masks()["imagenet_r"]][:2]
    for name in ("imagenet_a", "imagenet_r", "imagenet_sketch"):
        pictures(tmp_path / name, [ids[number] for number in shared])
    subject = preferring({n: [number] for n, number in enumerate(shared)}, tmp_path)
    specs = [
        EvalSpec.model_validate({"suite": "zero_shot", "data": name, **TEMPLATES})
        for name in ("imagenet_a", "imagenet_r", "imagenet_sketch")
    ]
    found = run_suites(subject, specs)
    assert [result.num_classes for result in found] == [200, 200, 1000]
    assert [result.metrics["top1"] for result in found] == [1, 1, 1]
    assert len({result.hashes["prompts"] for result in found}) == 1
    assert isinstance(subject.text, FakeTower) and subject.text.encoded == len(set(NAMES))


def test_folders_of_imagenet_v2_are_sorted_as_numbers(tmp_path: Path) -> None:
    pictures(tmp_path / "ImageNetV2-matched-frequency", ["0", "1", "2", "10", "999"])
    prefers = {0: [0], 1: [1], 2: [2], 3: [10], 4: [999]}
    result = measured(preferring(prefers, tmp_path), "imagenetv2")
    assert result.metrics["top1"] == 1 and result.num_classes == 1000


def test_a_class_that_a_variant_lacks_ends_in_one_line(tmp_path: Path) -> None:
    pictures(tmp_path / "imagenet_a", [wordnet_ids()[0]])
    dataset = open_dataset(Subject(None, None, data_root=tmp_path), "imagenet_a")
    with pytest.raises(DataError, match="class 'n01440764' is not one of its 200 classes"):
        imagenet_head(dataset)


def test_other_data_and_own_names_have_no_head(tmp_path: Path) -> None:
    pictures(tmp_path / "pets", ["cat", "dog"])
    pictures(tmp_path / "mine", wordnet_ids()[:3])
    subject = Subject(None, None, data_root=tmp_path)
    assert imagenet_head(open_dataset(subject, "pets")) is None
    mine = open_dataset(subject, "mine")
    head = imagenet_head(mine)
    assert head is not None and head.names == NAMES[:3] and head.columns == [[0], [1], [2]]
    assert imagenet_head(mine, ["a", "b", "c"]) is None


def test_objectnet_has_its_own_names_or_the_best_of_imagenets(tmp_path: Path) -> None:
    keys = objectnet_data(tmp_path / "objectnet-1.0")
    subject = Subject(None, None, data_root=tmp_path)
    own = open_dataset(subject, "objectnet")
    assert list(own.reader.classes or ()) == ["bowl", "cup"] and len(own.reader) == 4
    assert imagenet_head(own) is None
    shared = open_dataset(subject, {**keys, "names": "imagenet"})
    head = imagenet_head(shared)
    assert head is not None and head.columns == [[659], [968, 504]]
    scores = torch.zeros(1, 1000)
    scores[0, 504], scores[0, 659] = 0.9, 0.5
    assert head.scores(scores).tolist() == [[0.5, pytest.approx(0.9)]]
    with pytest.raises(DataError, match="2 names; `names: imagenet`"):
        imagenet_head(shared, ["a", "b"])
