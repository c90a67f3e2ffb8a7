"""The one data set that a folder is or holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.support.data_sets import clip_benchmark_data, multilingual_data, objectnet_data
from tests.support.elevater_root import make_elevater_root
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import labeled_pair, open_dataset
from vlkd_cli.evaluation.datasets.known_sets import known_as, load_templates, sets_on_disk
from vlkd_cli.evaluation.datasets.places import found_alone, found_by_name
from vlkd_cli.evaluation.datasets.prompts import names_of, prompts_of
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


def test_a_folder_of_classes_is_not_taken_for_the_files_of_torchvision(tmp_path: Path) -> None:
    """Both are called dtd; torchvision's lie in `dtd/dtd`."""
    write_classes(tmp_path / "dtd" / "test", 0)
    assert found_by_name({"dataset": "dtd"}, tmp_path)["path"] == str(tmp_path / "dtd")
    assert sets_on_disk(tmp_path)["dtd"].layout == "folder"
    (tmp_path / "dtd" / "dtd").mkdir()
    assert found_by_name({"dataset": "dtd"}, tmp_path)["dataset"] == "DTD"
    assert sets_on_disk(tmp_path)["dtd"].layout == "torchvision"


def test_sets_that_torchvision_gives_no_names_have_names_in_the_order_of_its_labels(
    tmp_path: Path,
) -> None:
    for content in ("fer2013/fer2013.csv", "gtsrb/GTSRB", "test_32x32.mat", "pcam/x.h5"):
        (tmp_path / content).parent.mkdir(exist_ok=True)
        (tmp_path / content).write_text("")
    for name, count, last in (
        # The file of FER2013: 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral.
        ("fer2013", 7, ["sad", "surprised", "neutral"]),
        ("gtsrb", 43, None),
        ("svhn", 10, ["7", "8", "9"]),
        ("pcam", 2, None),
    ):
        classes = found_by_name({"dataset": name}, tmp_path)["classes"]
        assert isinstance(classes, list) and len(classes) == count
        assert last is None or classes[-3:] == last
    own = found_by_name({"dataset": "svhn", "classes": ["a", "b"]}, tmp_path)
    assert own["classes"] == ["a", "b"]


def test_names_and_templates_that_come_with_the_data_are_used(tmp_path: Path) -> None:
    """Of a copy in CLIP_benchmark's layout; folders have neither, so vlkd's sets are for them."""
    (tmp_path / "wds_mnist").mkdir()
    clip_benchmark_data(tmp_path / "wds_mnist")
    for digit in range(10):
        (tmp_path / "svhn" / str(digit)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "svhn" / str(digit) / "0.png")
    subject = Subject(None, None, data_root=tmp_path)
    copy, folder = (open_dataset(subject, name) for name in ("mnist", "svhn"))
    names = names_of(copy, None, "mnist")
    assert names == ["apple", "ripe pear"]
    texts = prompts_of(copy, names, None, "mnist")
    assert texts[1] == ["a photo of a ripe pear.", "a drawing of a ripe pear."]
    texts = prompts_of(folder, names_of(folder, None, "svhn"), None, {"dataset": "svhn"})
    assert [own[0] for own in texts] == [
        load_templates()["svhn"][0].format(digit) for digit in range(10)
    ]


def test_a_folder_that_is_objectnet_or_in_many_languages_is_recognized(tmp_path: Path) -> None:
    objectnet_data(tmp_path / "objectnet-1.0")
    multilingual_data(tmp_path / "xm")
    assert found_alone(tmp_path / "objectnet-1.0")["reader"] == "objectnet"
    assert found_alone(tmp_path / "xm")["reader"] == "multilingual"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("wds_imagenet-a", "imagenet_a"),
        ("wds_mscoco_captions", "coco2014_karpathy5k"),
        ("wds_renderedsst2", "rendered_sst2"),
        ("wds_fgvc_aircraft", "FGVC-Aircraft"),
    ],
)
def test_webdataset_copies_are_found_however_they_are_spelled(
    folder: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "classnames.txt").write_text("a")
    assert found_by_name({"dataset": name}, tmp_path)["path"] == str(tmp_path / folder)
    assert known_as(name) in sets_on_disk(tmp_path)


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
    # As the repository of Winoground has it.
    (tmp_path / "winoground" / "data").mkdir()
    moved = (tmp_path / places["winoground"]).rename(tmp_path / "winoground/data/examples.jsonl")
    assert found_by_name({"dataset": "winoground"}, tmp_path)["path"] == str(moved)
    assert sets_on_disk(tmp_path)["winoground"].path == moved.parent
