"""Where the reader of meshes finds classes and splits, and its mistakes in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.meshes import box, off_text, write_boxes
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))


def opened(folder: Path, **keys: Any) -> Any:
    return open_reader({"reader": "meshes", "path": str(folder), "points": 16, **keys})


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(off_text(box(1 + number, 1, 1)))
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("chair/train/1.off", "chair/test/2.off", "bed/test/3.off"),  # ModelNet
        ("train/chair/1.off", "test/chair/2.off", "test/bed/3.off"),
    ],
)
def test_folders_of_splits_lie_above_or_below_those_of_classes(tmp_path, names):
    folder = put(tmp_path / "data", *names)
    test = opened(folder, split="test")
    assert test.classes == ["bed", "chair"]
    assert sorted(test.labels_of(np.arange(2)).tolist()) == [0, 1]
    assert len(opened(folder)) == 3 and len(opened(folder, split="train")) == 1
    with pytest.raises(DataError, match=r"no meshes of data.split 'val': it has test, train"):
        opened(folder, split="val")


def test_class_folders_give_labels_and_captions(tmp_path):
    write_boxes(tmp_path / "data", 2)
    reader = opened(tmp_path / "data", templates=["a {}", "one {}"])
    assert reader.classes == ["flat slab", "tall post"]
    assert list(reader.captions(2)) == ["a tall post", "one tall post"]
    assert reader.name(2).endswith("tall_post/00.off")
    named = opened(tmp_path / "data", classes=["slab", "post"])
    assert list(named.captions(3)) == ["a 3D model of a post"]
    with pytest.raises(DataError, match="3 names, the data 2 classes: flat_slab, tall_post"):
        opened(tmp_path / "data", classes=["a", "b", "c"])
    with pytest.raises(DataError, match="it has no splits"):
        opened(tmp_path / "data", split="test")


def test_meshes_without_class_folders_have_no_label_and_no_caption(tmp_path):
    reader = opened(put(tmp_path / "data", "a.off", "b.off"))
    assert reader.classes is None and not reader.has_captions
    assert reader.labels_of(np.arange(2)).tolist() == [-1, -1]
    assert reader.captions(1) == () and reader.num_captions == 0
    mixed = opened(put(tmp_path / "data", "a.off", "chair/c.off"))
    assert [mixed.label(n) for n in range(3)] == [-1, -1, 0]
    assert mixed.caption_starts(np.arange(4)).tolist() == [0, 0, 0, 1]


def test_an_index_names_files_classes_and_splits(tmp_path):
    folder = put(tmp_path / "data", "x/1.off", "x/2.off", "x/3.off")
    index = folder / "index.csv"
    index.write_text(
        'class,file,split\nchair,x/1.off,train\n"a, bed",x/2.off,test\nchair,x/3.off,test\n'
    )
    reader = opened(folder, index="index.csv", split="test")
    assert reader.classes == ["a, bed", "chair"]
    assert reader.labels_of(np.arange(2)).tolist() == [0, 1]
    assert len(opened(folder, index=str(index))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\nx/1.off\n", "no column 'class'"),
        ("class,file\nchair,x/9.off\n", "first meshes do not exist, e.g. .*x/9.off"),
        ("class,file\nchair,\n", "row 1 names no file"),
        ("class,file\nchair,x/1.off,more\n", "row 1 has 3 columns, the header 2"),
        ("class,file\n", "has a header and no rows"),
    ],
)
def test_mistakes_of_an_index_are_one_line(tmp_path, text, message):
    folder = put(tmp_path / "data", "x/1.off")
    (folder / "index.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        opened(folder, index="index.csv")
    assert "\n" not in str(caught.value)


def test_folders_without_meshes_are_one_line(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"it has no meshes \(obj, off, ply, stl\)"):
        opened(tmp_path)


def test_a_broken_mesh_is_named_when_it_is_read(tmp_path):
    folder = put(tmp_path / "data", "chair/1.off", "chair/2.off")
    (folder / "chair" / "1.off").write_text("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n")
    reader = opened(folder)
    with pytest.raises(Broken, match="has no faces"):
        reader.mesh(0)
    assert reader.mesh(1).shape == (16, 6)


def test_the_axis_that_points_up_becomes_y(tmp_path):
    folder = put(tmp_path / "data", "chair/1.off")
    lying, standing = opened(folder).mesh(0), opened(folder, up="z").mesh(0)
    assert np.array_equal(standing[:, 1], lying[:, 2])
    assert np.array_equal(standing[:, 4], lying[:, 5])
    # A rotation: no mirror image.
    turn = np.linalg.lstsq(lying[:, :3], standing[:, :3], rcond=None)[0]
    assert np.linalg.det(turn) == pytest.approx(1, abs=1e-4)


def test_the_fingerprint_knows_points_labels_and_files(tmp_path):
    write_boxes(tmp_path / "data")
    first = opened(tmp_path / "data").fingerprint()
    assert opened(tmp_path / "data", points=17).fingerprint() != first
    assert opened(tmp_path / "data", up="z").fingerprint() != first
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    assert opened(tmp_path / "copy").fingerprint() == first


def test_a_table_has_a_column_of_meshes(tmp_path):
    folder = put(tmp_path / "data", "1.off", "2.off")
    (folder / "t.csv").write_text("model,words,kind\n1.off,a box,b\n,nothing,b\n2.off,two,c\n")
    keys = {"reader": "csv", "path": str(folder / "t.csv"), "image": None, "mesh": "model"}
    reader: Any = open_reader({**keys, "caption": "words", "label": "kind"})
    assert reader.mesh(0).shape == (2048, 6) and reader.image(0) is None
    assert list(reader.captions(2)) == ["two"] and reader.label(2) == 1
    assert reader.name(2) == str(folder / "2.off")
    with pytest.raises(Broken, match="names no mesh"):
        reader.mesh(1)
    with pytest.raises(DataError, match="first meshes do not exist, e.g. .*a box"):
        open_reader({**keys, "mesh": "words", "caption": None})
    with pytest.raises(DataError, match="data.group: true does not go with data.mesh"):
        open_reader({**keys, "caption": "words", "group": True})
