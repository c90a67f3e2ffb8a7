"""The one data set that a folder is or holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.elevater_root import make_elevater_root
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import labeled_pair, open_dataset
from vlkd_cli.evaluation.datasets.known_sets import sets_on_disk
from vlkd_cli.evaluation.datasets.places import found_alone, found_by_name
from vlkd_cli.features.subject import Subject


def write_classes(folder: Path, shade: int) -> None:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (shade, number, 0)).save(folder / name / "0.png")


def test_a_folder_of_class_folders_is_a_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path, 0)
    (tmp_path / ".cache").mkdir()
    data = open_dataset(Subject(None, None, data_root=tmp_path), None)
    assert (len(data.reader), data.reader.classes) == (2, ["cat", "dog"])
    assert data.name == tmp_path.name


def test_of_folders_of_splits_the_test_part_is_measured(tmp_path: Path) -> None:
    for shade, split in enumerate(("train", "valid", "test")):
        write_classes(tmp_path / split, shade)
        expected = {"train": None, "valid": "val", "test": "test"}[split]
        if expected:
            assert found_alone(tmp_path)["split"] == expected
    pair = labeled_pair(Subject(None, None, data_root=tmp_path), None, None)
    assert (pair.train.split, pair.test.split) == ("train", "test")


def test_a_known_data_set_that_lies_alone_is_taken_by_name(tmp_path: Path) -> None:
    (tmp_path / "wds_birds").mkdir()
    (tmp_path / "wds_birds" / "classnames.txt").write_text("crow")
    assert found_alone(tmp_path) == {"dataset": "birds"}
    assert found_by_name({"dataset": "birds"}, tmp_path) == {
        "reader": "clip_benchmark",
        "path": str(tmp_path / "wds_birds"),
    }
    inside = found_alone(tmp_path / "wds_birds")
    assert inside == {"reader": "clip_benchmark", "path": str(tmp_path / "wds_birds")}


def test_of_several_data_sets_one_is_to_be_chosen(tmp_path: Path) -> None:
    root = make_elevater_root(tmp_path, train=1, test=3)
    with pytest.raises(DataError, match=r"holds \d data sets: .*toy_colors.*--with data=NAME"):
        found_alone(root)


def test_a_folder_without_data_and_no_folder_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match="no data set that is recognized.*Folders there: notes"):
        found_alone(tmp_path)
    with pytest.raises(DataError, match="has no data to measure"):
        found_alone(None)


def test_files_of_wrong_captions_are_found_by_name_and_listed(tmp_path: Path) -> None:
    places = {
        "sugar_crepe/add_att": "sugar_crepe/data/add_att.json",
        "aro/vg_relation": "aro/visual_genome_relation.json",
        "aro/coco_order": "aro/coco_order.json",
        "winoground": "winoground/examples.jsonl",
    }
    for place in places.values():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("[]")
    for name, place in places.items():
        keys = found_by_name({"dataset": name}, tmp_path)
        assert keys == {"reader": "choices", "path": str(tmp_path / place)}
    listed = sets_on_disk(tmp_path)
    assert {name for name, found in listed.items() if found.layout == "choices"} == set(places)
