from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import clip_benchmark_data, encoded, photo, write_tar
from vlkd_cli.data.readers.clip_benchmark import ClipBenchmark
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import open_dataset
from vlkd_cli.features.subject import Subject


def test_labels_classes_and_templates_are_those_of_the_folder(tmp_path: Path) -> None:
    reader = open_reader(clip_benchmark_data(tmp_path))
    assert isinstance(reader, ClipBenchmark)
    assert reader.classes == ["apple", "ripe pear"]
    assert [reader.label(index) for index in range(6)] == [0, 1, 0, 1, 0, 1]
    assert list(reader.captions(1)) == ["a photo of a ripe pear.", "a drawing of a ripe pear."]


def test_several_labels_come_from_rows_of_ones(tmp_path: Path) -> None:
    (tmp_path / "classnames.txt").write_text("a\nb\nc\n")
    (tmp_path / "dataset_type.txt").write_text("multilabel\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("one {c}\n")
    members: dict[str, bytes] = {}
    for number, row in enumerate(([1, 0, 1], [0, 0, 0])):
        buffer = io.BytesIO()
        np.save(buffer, np.array(row))
        members |= {f"s{number}.jpg": encoded(photo(number)), f"s{number}.npy": buffer.getvalue()}
    write_tar(tmp_path / "test" / "0.tar", members)
    reader = ClipBenchmark(path=str(tmp_path))
    assert [tuple(reader.labels(index)) for index in range(2)] == [(0, 2), ()]
    assert reader.multi_label
    # A row without labels is not counted as one of the last class.
    assert [list(reader.captions(index)) for index in range(2)] == [["one a"], ["one thing"]]


def test_captions_for_retrieval_are_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    write_tar(
        tmp_path / "test" / "0.tar",
        {
            "s0.jpg": encoded(photo(0)),
            "s0.txt": b"one\ntwo\n",
            "s1.jpg": encoded(photo(1)),
            "s1.txt": b"three",
        },
    )
    reader = ClipBenchmark(path=str(tmp_path))
    assert [list(reader.captions(index)) for index in range(2)] == [["one", "two"], ["three"]]
    assert [reader.caption_start(index) for index in range(3)] == [0, 2, 3]


def test_missing_shards_and_wrong_classes_are_reported(tmp_path: Path) -> None:
    clip_benchmark_data(tmp_path)
    with pytest.raises(DataError, match="no folder 'val'"):
        ClipBenchmark(path=str(tmp_path), split="val")
    (tmp_path / "classnames.txt").write_text("apple\n")
    with pytest.raises(DataError, match="class 1 is not one of the 1 names"):
        ClipBenchmark(path=str(tmp_path))
    (tmp_path / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match="nshards.txt lists 2"):
        ClipBenchmark(path=str(tmp_path))


def test_suites_find_data_by_name_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "wds_fruit").mkdir()
    clip_benchmark_data(tmp_path / "wds_fruit")
    subject = Subject(None, None, data_root=tmp_path)
    dataset = open_dataset(subject, "fruit")
    assert (dataset.name, dataset.split, len(dataset.reader)) == ("fruit", "test", 6)
    assert open_dataset(subject, "fruit", split="train").row_hash != dataset.row_hash
    for split in ("train", "val"):
        (tmp_path / "Birds" / split / "wren").mkdir(parents=True)
        photo(1).save(tmp_path / "Birds" / split / "wren" / "0.jpg")
    assert open_dataset(subject, {"dataset": "Birds", "split": "val"}).split == "val"
    with pytest.raises(DataError, match="list-datasets"):
        open_dataset(subject, "fish")


def dataset(folder: Path, kind: str, suffix: str, *contents: bytes) -> ClipBenchmark:
    """A data set of this kind whose samples have these members next to their images."""
    (folder / "dataset_type.txt").write_text(kind)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    members: dict[str, bytes] = {}
    for number, content in enumerate(contents):
        members |= {f"s{number}.jpg": encoded(photo(number)), f"s{number}.{suffix}": content}
    write_tar(folder / "test" / "0.tar", members)
    return ClipBenchmark(path=str(folder))


def test_only_line_feeds_part_captions(tmp_path: Path) -> None:
    text = "cap\u2028still \x85 the \x0b same\x0c"
    reader = dataset(tmp_path, "retrieval", "txt", f"\ufeff{text}\r\nnext".encode(), b"x")
    assert [len(reader.captions(k)) for k in (0, 1)] == [2, 1]
    assert reader.captions(0) == [text.strip(), "next"]


def test_captions_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0.tar:s1.txt cannot be read: byte 3 .*UTF-8") as caught:
        dataset(tmp_path, "retrieval", "txt", b"x", b"caf\xe9")
    assert "\n" not in str(caught.value)
    (tmp_path / "dataset_type.txt").unlink()
    (tmp_path / "classnames.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"classnames.txt:1: byte 3 .* is not utf-8 text"):
        ClipBenchmark(path=str(tmp_path))


def npy(*values: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


def vast_npy() -> bytes:
    """A header that promises terabytes."""
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"no array", "cannot be read"),
        (npy(1, 0)[:-3], "cannot be read"),
        (npy(1, 0)[:20], "cannot be read"),
        (npy("a", "b"), r"cannot be read \(it holds <U1, not numbers"),
        (npy([1], [0]), r"has shape \(2, 1\); 2 classes"),
        (npy(1, 0, 1), r"has shape \(3,\); 2 classes"),
        (vast_npy(), r"has shape \(1000000000000,\); 2 classes"),
    ],
)
def test_labels_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"0.tar:s1.npy {message}") as caught:
        dataset(tmp_path, "multilabel", "npy", npy(1, 0), content)
    assert "\n" not in str(caught.value)
