from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import csv_data, parquet_data, write_photos, write_tar
from vlkd_cli.data.readers.mix import Mix, MixedStream, mixed
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.errors import DataError


def test_without_weights_every_set_comes_once(tmp_path: Path) -> None:
    reader = open_reader({"readers": [csv_data(tmp_path), {"reader": "shapes", "num_samples": 10}]})
    assert isinstance(reader, Mix) and len(reader) == 16
    assert reader.captions(0)[0].startswith("caption 0") and reader.name(6) == "rendered picture 0"


def test_weights_repeat_the_smaller_set_until_the_shares_hold() -> None:
    small, large = Shapes(num_samples=10), Shapes(num_samples=30, seed=1)
    reader = mixed([small, large], [3, 1])
    assert isinstance(reader, Reader) and len(reader) == 120
    own = [reader.captions(index) for index in range(90)]
    assert all(own[index] == small.captions(index % 10) for index in range(90))
    assert [reader.label(90 + index) for index in range(30)] == [
        large.label(index) for index in range(30)
    ]
    assert reader.classes == small.classes


def test_caption_rows_of_a_mixture_are_counted_through(tmp_path: Path) -> None:
    reader = open_reader(
        {
            "readers": [
                csv_data(tmp_path) | {"weight": 1},
                {"reader": "shapes", "num_samples": 4, "weight": 1},
            ]
        }
    )
    assert isinstance(reader, Reader)
    counts = [len(reader.captions(index)) for index in range(len(reader))]
    assert reader.caption_starts(np.arange(len(reader) + 1)).tolist() == [
        0,
        *np.cumsum(counts).tolist(),
    ]
    assert reader.num_captions == sum(counts)


def test_labels_of_different_classes_are_not_mixed(tmp_path: Path) -> None:
    reader = open_reader({"readers": [csv_data(tmp_path), {"reader": "shapes", "num_samples": 4}]})
    assert isinstance(reader, Reader)
    assert reader.classes is None and {reader.label(index) for index in range(len(reader))} == {-1}
    assert reader.labels_of(np.arange(3)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1, None], "give every reader a 'weight', or none"), ([1, 0], "a 'weight' must be above 0")],
)
def test_wrong_weights_are_refused(weights: list[float | None], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mixed([Shapes(num_samples=4), Shapes(num_samples=4)], weights)
    with pytest.raises(DataError, match="list at least one"):
        mixed([], [])


class Counting(StreamReader):
    samples_per_epoch = 40

    def stream(self, epoch, seed, shard, num_shards):  # type: ignore[no-untyped-def]
        from vlkd_cli.data.batch import Sample

        yield from (
            Sample(-1, None, [f"stream {number}"]) for number in range(shard, 40, num_shards)
        )


def test_a_stream_makes_the_mixture_a_stream_with_the_shares_asked_for() -> None:
    reader = mixed([Counting(), Shapes(num_samples=40)], [3, 1])
    assert isinstance(reader, MixedStream) and reader.samples_per_epoch == 160
    captions = [
        sample.captions[0] for share in range(2) for sample in reader.stream(0, 0, share, 2)
    ]
    assert len(captions) == 160
    assert 0.6 < sum(caption.startswith("stream") for caption in captions) / 160 < 0.9


def table(folder: Path, name: str, **keys: object) -> dict[str, object]:
    write_photos(folder, 2)
    (folder / name).write_text("filepath,title,more,score\nphoto00.jpg,a,b,1\nphoto01.jpg,c,d,2\n")
    return {"reader": "csv", "path": str(folder / name)} | keys


def test_texts_and_targets_of_a_mixture_are_those_of_its_readers(tmp_path: Path) -> None:
    keys = {"texts": {"more": "more"}, "target": "score"}
    reader = open_reader({"readers": [table(tmp_path, f"{k}.csv", **keys) for k in "ab"]})
    assert isinstance(reader, Reader) and reader.text_names == ("more",)
    assert reader.targets_of(np.array([1, 2, 3])).tolist() == [[2], [1], [2]]
    assert reader.captions(3) == ["c", "d"] and reader.text_span(3, "more") == (1, 2)
    with pytest.raises(DataError, match=r"same 'texts' .*\(more; 1 targets\) and \(no texts; 0"):
        open_reader({"readers": [table(tmp_path, "a.csv", **keys), table(tmp_path, "b.csv")]})


def test_a_caption_that_cannot_be_read_breaks_its_sample_in_a_mixed_stream(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("filepath,title\nphoto00.jpg,a\nphoto01.jpg,b,c\n")
    write_photos(tmp_path, 2)
    write_tar(tmp_path / "s.tar", {"0.jpg": b"x", "0.txt": b"d"})
    stream = open_reader(
        {
            "readers": [
                {"reader": "csv", "path": str(tmp_path / "a.csv")},
                {
                    "reader": "webdataset",
                    "path": str(tmp_path / "s.tar"),
                    "stream": True,
                    "samples_per_epoch": 2,
                },
            ]
        }
    )
    assert isinstance(stream, MixedStream)
    samples = [sample for epoch in range(4) for sample in stream.stream(epoch, 0, 0, 1)]
    problems = {sample.problem for sample in samples if not sample.captions}
    assert len(problems) == 1 and "row 2 has 3 columns" in problems.pop()


def test_samples_of_a_mixed_stream_have_the_targets_of_their_reader(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"0.jpg": b"x", "0.txt": b"d", "0.json": b'{"score": 7}'})
    shards = {"reader": "webdataset", "path": str(tmp_path / "s.tar"), "stream": True}
    shards |= {"samples_per_epoch": 2, "target": "score"}
    rows = table(tmp_path, "a.csv", target="score")
    stream = open_reader({"readers": [shards, rows]})
    assert isinstance(stream, MixedStream)
    samples = [sample for epoch in range(4) for sample in stream.stream(epoch, 0, 0, 1)]
    assert {tuple(sample.targets) for sample in samples} == {(7.0,), (1.0,), (2.0,)}
    with pytest.raises(DataError, match=r"as many columns of 'target'.*1 targets.*0 targets"):
        open_reader({"readers": [shards, table(tmp_path, "a.csv")]})


def test_row_groups_of_a_mixture_are_read_together(tmp_path: Path) -> None:
    """Eight rows in groups of two, twice; sixteen others in pieces of that size."""
    reader = open_reader(
        {
            "readers": [
                parquet_data(tmp_path) | {"weight": 1},
                {"reader": "shapes", "num_samples": 16, "size_px": 16, "weight": 1},
            ]
        }
    )
    assert isinstance(reader, Mix) and reader.blocks is not None and len(reader) == 32
    assert reader.blocks.starts.tolist() == list(range(0, 33, 2))
    assert open_reader({"readers": [{"reader": "shapes", "num_samples": 4}]}).blocks is None  # type: ignore[union-attr]
