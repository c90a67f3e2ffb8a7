"""Folder, COCO, classification and their bad input; csv, webdataset and shapes have files of their
own."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_sets import (
    classification_data,
    coco_data,
    encoded,
    folder_data,
    photo,
    write_photos,
)
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.classification import Classification
from vlkd_cli.data.readers.coco import COCO
from vlkd_cli.data.readers.folder import Folder
from vlkd_cli.data.readers.images import Images
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.templates import templates_of
from vlkd_cli.errors import DataError, RecipeError


def test_captions_of_a_folder_are_the_lines_next_to_each_image(tmp_path: Path) -> None:
    reader = Folder(path=folder_data(tmp_path)["path"])
    assert len(reader) == 5
    assert reader.captions(2) == ["first of photo02.jpg", "second of photo02.jpg"]
    assert reader.name(2) == str(tmp_path / "inner" / "photo02.jpg")


def test_images_without_captions_are_refused_or_left_out_by_request(tmp_path: Path) -> None:
    folder_data(tmp_path)
    (tmp_path / "inner" / "photo01.txt").unlink()
    (tmp_path / "inner" / "photo03.txt").write_text("\n \n")
    with pytest.raises(
        DataError,
        match=r"2 of 5 images have no captions, e.g. inner/photo01.jpg. .*missing: leave_out",
    ):
        Folder(path=str(tmp_path))
    reader = Folder(path=str(tmp_path), missing="leave_out")
    assert [Path(reader.name(index)).stem for index in range(len(reader))] == [
        "photo00",
        "photo02",
        "photo04",
    ]
    assert reader.num_left_out == 2


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.path .*nowhere: no such folder"):
        Folder(path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no image in this folder or below it"):
        Folder(path=str(tmp_path))
    write_photos(tmp_path, 2)
    with pytest.raises(DataError, match=r"none of the 2 images has captions.*reader: images"):
        Folder(path=str(tmp_path), missing="leave_out")


def test_coco_captions_are_joined_by_image(tmp_path: Path) -> None:
    section = coco_data(tmp_path)
    reader = COCO(path=section["path"], image_root=section["image_root"])
    assert reader.captions(1) == ["caption 0 of 1", "caption 1 of 1", "caption 2 of 1"]
    assert decode(reader.image(1)).shape == (40, 56, 3)


def test_images_without_captions_in_a_coco_file_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = coco_data(tmp_path)
    content = json.loads(Path(section["path"]).read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 12]
    Path(section["path"]).write_text(json.dumps(content))
    reader = COCO(path=section["path"], image_root=section["image_root"])
    assert (
        "warning: " in (reported := capsys.readouterr().err)
        and "1 images have no caption" in reported
    )
    assert [reader.captions(index)[0][-1] for index in range(len(reader))] == ["0", "1", "3"]


def karpathy(folder: Path) -> str:
    names = write_photos(folder / "val2014", 5)
    images = [
        {
            "filepath": "val2014",
            "filename": name,
            "split": split,
            "sentences": [{"raw": f" a  caption of {name}\n"}] * 2,
        }
        for name, split in zip(names, ["train", "restval", "val", "test", "test"], strict=True)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return str(folder / "dataset.json")


def test_karpathys_splits_with_and_without_restval(tmp_path: Path) -> None:
    path = karpathy(tmp_path)
    sizes = {split: len(COCO(path=path, split=split)) for split in ("train", "val", "test")}  # type: ignore[arg-type]
    assert sizes == {"train": 2, "val": 1, "test": 2}
    assert len(COCO(path=path, split="train", restval=False)) == 1
    assert len(COCO(path=path)) == 5
    assert COCO(path=path, split="val").captions(0) == ["a caption of photo02.jpg"] * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not valid JSON"),
        ("[]", r"has no 'images' \(found: a list\)"),
        ('{"annotations": []}', r"has no 'images' \(found: annotations\)"),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}',
            r"annotations without captions .*captions_\*.json",
        ),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}',
            r"images\[0\] has no 'file_name'",
        ),
        (
            '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": null}]}',
            r"annotations\[0\].caption is null, not text",
        ),
        ('{"images": [], "annotations": []}', r"no image with captions"),
        (
            (
                '{"images": [{"id": 1, "file_name": "no.jpg"}], "annotations": [{"image_id": 1,'
                ' "caption": "a"}]}'
            ),
            r"its first images do not exist, e.g. .*no.jpg. Set data.image_root",
        ),
    ],
)
def test_the_error_for_an_unreadable_caption_file_gives_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        COCO(path=str(tmp_path / "captions.json"))
    assert "\n" not in str(caught.value)


def test_a_split_of_an_unsplit_coco_file_is_an_error(tmp_path: Path) -> None:
    section = coco_data(tmp_path)
    with pytest.raises(
        DataError, match=r"has no splits: it is a COCO captions file. Put '{split}' into data.path"
    ):
        COCO(path=section["path"], image_root=section["image_root"], split="val")
    with pytest.raises(DataError, match=r"captions file nowhere.json: no such file"):
        COCO(path="nowhere.json")


def test_class_folders_become_labels_and_captions(tmp_path: Path) -> None:
    reader = Classification(
        path=classification_data(tmp_path)["path"], split="val", templates=["a {}", "the {}"]
    )
    assert reader.classes == ["pear", "red apple"]
    assert [reader.label(index) for index in range(6)] == [0, 0, 0, 1, 1, 1]
    assert reader.captions(4) == ["a red apple", "the red apple"]
    assert "/val/" in reader.name(0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"takes either 'dataset' .* or 'path'"),
        (
            {"dataset": "CIFAR11", "root": "."},
            r"torchvision.datasets has no such class. Did you mean 'CIFAR10'\?",
        ),
        (
            {"dataset": "CIFAR10", "root": "nowhere"},
            r"data.root nowhere: no such folder. .*data.download: true",
        ),
        (
            {"dataset": "CIFAR10", "root": "."},
            r"CIFAR10 is not in data.root . .*data.download: true",
        ),
        (
            {"dataset": "CIFAR10", "root": ".", "split": "val"},
            r"'val': CIFAR10 has only train and test",
        ),
        ({"path": "{folder}", "split": "test"}, r"has no folder 'test' for data.split"),
        (
            {"path": "{folder}", "split": "train", "classes": ["one"]},
            r"data.classes has 1 names, the data 2 classes",
        ),
        (
            {"path": "{folder}", "split": "train", "classes": "nowhere.txt"},
            r"data.classes nowhere.txt: no such file",
        ),
        (
            {"path": "{folder}", "split": "train", "templates": "simpel"},
            r"templates 'simpel': no such set. Did you mean 'simple'\?",
        ),
        (
            {"path": "{folder}", "split": "train", "templates": ["a thing"]},
            r"template 'a thing' has no {} for the class name",
        ),
        ({"path": "{folder}/train/pear"}, r"no image in any sub-folder"),
    ],
)
def test_the_error_for_unreadable_labeled_data_gives_the_reason(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    folder = classification_data(tmp_path)["path"]
    keys = {
        key: value.replace("{folder}", folder) if isinstance(value, str) else value
        for key, value in keys.items()
    }
    with pytest.raises(DataError, match=message):
        Classification(**keys)


def idx(array: np.ndarray) -> bytes:
    """An array in the IDX format of MNIST."""
    return (
        struct.pack(">HBB", 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def test_data_sets_of_torchvision_are_read_by_name(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (12, 28, 28))
    for part, count in (("train", 12), ("t10k", 8)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(count) % 10))
    reader = Classification(dataset="MNIST", root=str(tmp_path), split="test")
    assert len(reader) == 8 and len(reader.classes or ()) == 10
    assert reader.labels_of(np.arange(8)).tolist() == list(range(8))
    assert np.array_equal(decode(reader.image(3))[..., 0], pictures[3])
    assert len(Classification(dataset="MNIST", root=str(tmp_path), split="train")) == 12


def test_template_sets_of_open_clip_have_a_place_for_the_name() -> None:
    assert len(templates_of("open_clip:imagenet")) == 80
    assert all("{}" in template for template in templates_of("open_clip:imagenet"))


def test_the_section_names_one_reader_and_its_keys() -> None:
    with pytest.raises(RecipeError, match=r"either 'reader' or 'readers'"):
        open_reader({"path": "data.csv"})
    with pytest.raises(RecipeError, match=r"unknown reader 'csw'. Did you mean 'csv'\?"):
        open_reader({"reader": "csw"})
    with pytest.raises(RecipeError, match=r"reader 'csv': key 'path' is missing"):
        open_reader({"reader": "csv"})
    assert len(open_reader({"reader": "shapes", "num_samples": 5, "workers": 3}, split="val")) == 5  # type: ignore[arg-type]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("section", "images", "captions"),
    [
        ({"reader": "csv", "path": "{data}/coco_captions/val.tsv"}, 110, 550),
        (
            {
                "reader": "coco",
                "path": "{data}/coco_captions/captions_val.json",
                "image_root": "{data}/coco_captions/val",
            },
            110,
            550,
        ),
        ({"reader": "csv", "path": "{data}/flickr8k_mini/{split}.tsv", "split": "val"}, 100, 500),
        (
            {
                "reader": "csv",
                "path": "{data}/imagenet_sample/labels.tsv",
                "image": "file",
                "caption": "name",
                "label": "class_index",
            },
            200,
            200,
        ),
    ],
)
def test_real_photos_are_read_and_decoded(
    shared: Path, section: dict[str, Any], images: int, captions: int
) -> None:
    section = {key: value.replace("{data}", str(shared / "data")) for key, value in section.items()}
    reader: Any = open_reader(section)
    assert (len(reader), reader.num_captions) == (images, captions)
    shapes = [decode(reader.image(index)).shape for index in range(0, images, 5)]
    assert all(len(shape) == 3 and shape[2] == 3 for shape in shapes)
    assert all(caption.strip() for index in range(images) for caption in reader.captions(index))


def test_captions_of_a_folder_are_read_without_marks_and_end_at_line_feeds_only(
    tmp_path: Path,
) -> None:
    write_photos(tmp_path, 2)
    (tmp_path / "photo00.txt").write_bytes("\ufeffone\u2028still one\r\n\ufefftwo".encode())
    (tmp_path / "photo01.txt").write_bytes(b"fine")
    reader = Folder(path=str(tmp_path))
    assert reader.captions(0) == ["one\u2028still one", "two"] and reader.captions(1) == ["fine"]


def test_a_caption_file_that_is_damaged_breaks_its_image_alone(tmp_path: Path) -> None:
    write_photos(tmp_path, 3)
    (tmp_path / "photo00.txt").write_bytes(b"fine")
    (tmp_path / "photo01.txt").write_bytes(b"caf\xe9")
    reader = Folder(path=str(tmp_path), missing="leave_out")
    assert reader.captions(0) == ["fine"] and len(reader) == 2
    assert [reader.caption_start(k) for k in range(3)] == [0, 1, 1]
    with pytest.raises(Broken, match=r"photo01.txt cannot be read: byte 3 \(0xe9\) is not utf-8"):
        reader.captions(1)
    (tmp_path / "photo00.txt").unlink()
    os.mkfifo(tmp_path / "photo00.txt")
    with pytest.raises(
        DataError, match=r"photo00.txt cannot be read .*Set data.encoding"
    ) as reported:
        Folder(path=str(tmp_path), missing="leave_out")
    assert "\n" not in str(reported.value)


def test_links_to_folders_above_add_no_images(tmp_path: Path) -> None:
    folder_data(tmp_path)
    os.symlink("..", tmp_path / "inner" / "again")
    assert len(Folder(path=str(tmp_path))) == 5


def test_restval_has_no_effect_without_splits(tmp_path: Path) -> None:
    section = coco_data(tmp_path)
    with pytest.raises(DataError, match="data.restval has no effect"):
        COCO(path=section["path"], image_root=section["image_root"], restval=False)


def coco_file(folder: Path, images: Any, annotations: Any) -> str:
    write_photos(folder, 2)
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(folder / "c.json")


def test_lone_surrogates_and_marks_in_a_coco_file_are_repaired(tmp_path: Path) -> None:
    path = coco_file(
        tmp_path,
        [{"id": k, "file_name": f"photo0{k}.jpg"} for k in (0, 1)],
        [{"image_id": k, "caption": "\ufeffsmile \ud83d here"} for k in (0, 1)],
    )
    reader = COCO(path=path)
    assert reader.captions(1) == ["smile \ufffd here"]
    assert reader.fingerprint()


IMAGE = {"id": 0, "file_name": "photo00.jpg"}
TEXT = {"image_id": 0, "caption": "a"}


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([3], [TEXT], r"images\[0\] is a number, not an object"),
        ([IMAGE, {"id": 1, "file_name": 5}], [TEXT], r"images\[1\].file_name is a number"),
        ([IMAGE | {"id": [1]}], [TEXT], r"images\[0\].id is a list, not an id"),
        ([IMAGE | {"file_name": ""}], [TEXT], r"images\[0\].file_name is empty, not a path"),
        ({}, [TEXT], r"'images' is an object, not a list"),
        ([IMAGE], None, r"'annotations' is null, not a list"),
        ([IMAGE], [TEXT, "a"], r"annotations\[1\] is a text, not an object"),
        ([IMAGE], [TEXT | {"caption": ["a"]}], r"annotations\[0\].caption is a list, not text"),
        ([IMAGE], [TEXT | {"image_id": {}}], r"annotations\[0\].image_id is an object, not an id"),
        ([IMAGE], [{"caption": "a"}], r"annotations\[0\] has no 'image_id'"),
    ],
)
def test_entries_of_other_types_are_named(
    tmp_path: Path, images: Any, annotations: Any, message: str
) -> None:
    path = coco_file(tmp_path, images, annotations)
    with pytest.raises(DataError, match=message) as caught:
        COCO(path=path)
    assert "\n" not in str(caught.value)


def test_entries_of_other_types_in_karpathys_layout_are_named(tmp_path: Path) -> None:
    for entry, message in (
        ({"filename": "a.jpg", "sentences": None}, r"images\[0\]: 'sentences' is null, not a list"),
        ({"filename": "a.jpg", "sentences": [{"raw": 3}]}, r"sentences\[0\].raw is a number"),
        ({"filename": 3, "sentences": [{"raw": "a"}]}, r"images\[0\].filename is a number"),
        ({"sentences": [{"raw": "a"}]}, r"images\[0\] has no 'filename'"),
    ):
        (tmp_path / "k.json").write_text(json.dumps({"images": [entry]}))
        with pytest.raises(DataError, match=message):
            COCO(path=str(tmp_path / "k.json"))


def test_a_coco_file_that_is_nested_too_deeply_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"images": ' + "[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        COCO(path=str(tmp_path / "c.json"))


def classes_of(folder: Path, *names: str) -> Classification:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photo(1)))
    return Classification(path=str(folder), templates=["a {}"])


def test_hidden_folders_are_not_classes_and_jfif_files_are_images(tmp_path: Path) -> None:
    reader = classes_of(
        tmp_path, "cat/0.jpg", "cat/1.jfif", "cat/2.JPE", "dog/0.jpg", ".ipynb_checkpoints/0.jpg"
    )
    assert reader.classes == ["cat", "dog"]
    assert reader.labels_of(np.arange(4)).tolist() == [0, 0, 0, 1] and len(reader) == 4


def test_linked_folders_are_classes_unless_they_lead_back(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        classes_of(tmp_path / "elsewhere", f"{name}/0.jpg")
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "elsewhere" / "cat", tmp_path / "data" / "cat")
    os.symlink("..", tmp_path / "data" / "up")
    os.symlink(".", tmp_path / "data" / "self")
    reader = classes_of(tmp_path / "data", "bee/0.jpg")
    os.symlink("bee", tmp_path / "data" / "wasp")
    assert reader.classes == Classification(path=str(tmp_path / "data")).classes == ["bee", "cat"]
    assert reader.labels_of(np.arange(len(reader))).tolist() == [0, 1]


@pytest.mark.parametrize("keys", [{"root": "data"}, {"download": True}])
def test_keys_of_torchvision_go_with_a_data_set_only(tmp_path: Path, keys: dict[str, Any]) -> None:
    classes_of(tmp_path, "cat/0.jpg")
    with pytest.raises(DataError, match=f"data.{next(iter(keys))} has no effect with data.path"):
        Classification(path=str(tmp_path), **keys)


def test_a_class_without_images_stays_a_class_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bee").mkdir()
    reader = classes_of(tmp_path, "cat/0.jpg", "dog/0.jpg")
    assert reader.classes == ["bee", "cat", "dog"]
    assert reader.labels_of(np.arange(2)).tolist() == [1, 2]
    assert "1 of 3 classes have no image, e.g. 'bee'" in capsys.readouterr().err


def test_a_list_of_class_names_is_read_without_marks_or_refused(tmp_path: Path) -> None:
    classes_of(tmp_path / "data", "cat/0.jpg", "dog/0.jpg")
    names = tmp_path / "names.txt"
    for content in ("\ufeffcat\ndog\n", "cat\r\n\r\n dog"):
        names.write_bytes(content.encode())
        reader = Classification(path=str(tmp_path / "data"), classes=str(names))
        assert reader.classes == ["cat", "dog"]
    names.write_bytes(b"caf\xe9\ndog\n")
    with pytest.raises(DataError, match=r"names.txt:1: byte 3 \(0xe9\) is not utf-8 text"):
        Classification(path=str(tmp_path / "data"), classes=str(names))


def test_damaged_data_of_torchvision_is_refused_in_a_line(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    with pytest.raises(DataError, match=r"MNIST in data.root .* cannot be read") as caught:
        Classification(dataset="MNIST", root=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_images_come_from_a_folder_or_a_list(tmp_path: Path) -> None:
    write_photos(tmp_path / "a" / "b", 3)
    folder = Images(path=str(tmp_path / "a"))
    assert len(folder) == 3 and not folder.has_captions and folder.captions(0) == []
    assert folder.num_captions == 0 and folder.text_span(0) == (0, 0) and folder.label(0) == -1
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa/b/photo02.jpg\r\n\na/b/photo00.jpg\n")
    listed = Images(path=str(tmp_path / "list.txt"))
    assert [Path(listed.name(k)).name for k in (0, 1)] == ["photo02.jpg", "photo00.jpg"]
    assert decode(listed.image(1)).shape == (40, 56, 3)
    part: Any = open_reader({"reader": "images", "path": str(tmp_path / "a"), "part": [0, 0.34]})
    assert len(part) == 1 and not part.has_captions
    assert len(Images(path=f"{tmp_path}/{{split}}", split="a")) == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "no such folder"),
        ("empty", "it has no images"),
        ("list.txt", "its first images do not exist, e.g. .*no.jpg"),
        ("bare.txt", "it has no images"),
    ],
)
def test_missing_images_are_reported(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("no.jpg\n")
    (tmp_path / "bare.txt").write_text("\n")
    with pytest.raises(DataError, match=message):
        Images(path=str(tmp_path / path))
