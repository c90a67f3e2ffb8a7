"""Variants of ImageNet are columns of one head of 1,000 classes."""

from __future__ import annotations

import hashlib
import json
import shutil
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
        return torch.nn.functional.one_hot(torch.tensor(NAMES.index(text)), 1000).float()

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


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        # The archives' own folders, and one in another, as CLIP_benchmark unpacks it.
        ("imagenetv2-matched-frequency-format-val", "imagenetv2"),
        ("imagenetv2/ImageNetV2-matched-frequency", "imagenetv2"),
        ("imagenetv2-threshold0.7-format-val", "imagenetv2_threshold0.7"),
        ("imagenetv2-top-images-format-val", "imagenetv2-top-images"),
    ],
)
def test_folders_of_imagenet_v2_are_numbers_of_classes(
    folder: str, name: str, tmp_path: Path
) -> None:
    pictures(tmp_path / folder, ["0", "1", "2", "10", "0100", "999"])
    prefers = {0: [0], 1: [1], 2: [2], 3: [10], 4: [100], 5: [999]}
    result = measured(preferring(prefers, tmp_path), name)
    assert result.metrics["top1"] == 1 and result.num_classes == 1000
    alone = measured(preferring(prefers, tmp_path / folder), None)
    assert alone.metrics["top1"] == 1 and alone.hashes == result.hashes


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("imagenet-a", "imagenet_a"),
        ("imagenet-r", "imagenet-r"),
        ("sketch", "imagenet_sketch"),
        ("imagenet_sketch/sketch", "imagenet_sketch"),
    ],
)
def test_archives_of_variants_are_read_as_they_unpack(
    folder: str, name: str, tmp_path: Path
) -> None:
    ids, mask = wordnet_ids(), masks().get(name.replace("-", "_"), [])
    own = mask or [3, 400, 999]
    pictures(tmp_path / folder, [ids[number] for number in own])
    (tmp_path / folder / "README.txt").write_text("about the data")
    others = [number for number in range(1000) if number not in mask] if mask else []
    # Every picture likes a class best that the variant lacks, where it lacks one.
    prefers = {n: [*others[n : n + 1], number] for n, number in enumerate(own)}
    result = measured(preferring(prefers, tmp_path), name)
    assert result.metrics["top1"] == 1 and result.num_classes == (len(mask) or 1000)
    classes = [row["class"] for row in result.details["per_class"]]
    assert classes == [NAMES[number] for number in own]


def test_a_class_that_a_variant_lacks_ends_in_one_line(tmp_path: Path) -> None:
    pictures(tmp_path / "imagenet_a", [wordnet_ids()[0]])
    dataset = open_dataset(Subject(None, None, data_root=tmp_path), "imagenet_a")
    with pytest.raises(DataError, match="class 'n01440764' is not one of its 200 classes"):
        imagenet_head(dataset)
    for name, folder in (("imagenet_sketch", "n99999999"), ("imagenetv2", "1000")):
        pictures(tmp_path / name, [folder])
        with pytest.raises(DataError, match=f"class '{folder}' is not one of ImageNet's 1000"):
            imagenet_head(open_dataset(Subject(None, None, data_root=tmp_path), name))


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
    alone = open_dataset(Subject(None, None, data_root=tmp_path / "objectnet-1.0"), None)
    assert alone.name == "objectnet-1.0" and alone.row_hash == own.row_hash


def test_objectnet_as_clip_benchmark_unpacks_it_is_the_same_data(tmp_path: Path) -> None:
    """Images in `objectnet-1.0/images`, and the files of `mappings/` in the folder itself."""
    objectnet_data(tmp_path / "whole")
    root = tmp_path / "objectnet"
    shutil.copytree(tmp_path / "whole" / "mappings", root)
    shutil.copytree(tmp_path / "whole" / "images", root / "objectnet-1.0" / "images")
    subject = Subject(None, None, data_root=tmp_path)
    found = open_dataset(subject, "objectnet")
    other = open_dataset(subject, {"reader": "objectnet", "path": str(tmp_path / "whole")})
    assert found.row_hash == other.row_hash
