from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.data_sets import encoded, photo, write_parquet, write_photos, write_tar
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.parquet import Parquet
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import TextView
from vlkd_cli.errors import DataError


def opened(**keys: Any) -> Reader:
    reader = open_reader({"reader": "parquet", **keys})
    assert isinstance(reader, Reader)
    return reader


def rows_of(numbers: range) -> dict[str, list[Any]]:
    return {
        "image": [encoded(photo(k)) for k in numbers],
        "caption": [f"caption {k}" for k in numbers],
        "label": [k % 3 for k in numbers],
    }


def captions(reader: Reader) -> list[str]:
    return [text for index in range(len(reader)) for text in reader.captions(index)]


def test_rows_of_several_files_are_read_by_position(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", rows_of(range(5 * number, 5 * number + 5)))
    for path in (
        f"{tmp_path}/*.parquet",
        f"{tmp_path}/{{0..2}}.parquet",
        str(tmp_path),
        [f"{tmp_path}/{k}.parquet" for k in range(3)],
        f"file://{tmp_path}/*.parquet",
    ):
        reader = opened(path=path, label="label")
        assert captions(reader) == [f"caption {k}" for k in range(15)]
        assert reader.image(7) == encoded(photo(7)) and reader.label(7) == 1
        assert reader.name(7).endswith("1.parquet group 0 row 2")
    assert reader.num_captions == 15 and reader.caption_start(4) == 4


def test_files_of_a_folder_are_found_however_their_suffix_is_written(tmp_path: Path) -> None:
    for number, name in enumerate(("0.PARQUET", "1.parquet", "inner/2.Parquet")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_parquet(tmp_path / name, rows_of(range(number, number + 1)))
    assert captions(opened(path=str(tmp_path))) == ["caption 0", "caption 1", "caption 2"]


def test_folders_of_datasets_are_read_with_their_splits_and_class_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog", "cow"], "_type": "ClassLabel"}}
    written = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    images = [{"bytes": encoded(photo(k)), "path": None} for k in range(4)]
    table = pa.table({"image": images, "caption": list("abcd"), "label": [0, 1, 2, 1]})
    table = table.replace_schema_metadata(written)
    hub, saved = tmp_path / "hub", tmp_path / "saved"
    for name, part in (("train", table.slice(0, 3)), ("validation", table.slice(3))):
        (hub / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(part, hub / "data" / f"{name}-00000-of-00001.parquet")
        (saved / name).mkdir(parents=True)
        with pa.OSFile(str(saved / name / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, part.schema) as writer:
                writer.write_table(part, max_chunksize=2)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (saved / name / "state.json").write_text(json.dumps(state))
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    for folder in (hub, saved):
        reader = opened(path=str(folder), label="label")
        assert captions(reader) == ["a", "b", "c"] and reader.image(2) == encoded(photo(2))
        assert [reader.label(k) for k in range(3)] == [0, 1, 2]
        assert reader.classes == ["cat", "dog", "cow"]
        assert captions(opened(path=str(folder), split="val")) == ["d"]
        with pytest.raises(DataError, match=r"no split 'test' .*Splits there: train, val"):
            opened(path=str(folder), split="test")
    assert captions(opened(path=str(saved / "validation"))) == ["d"]


def test_the_output_of_img2dataset_is_read_as_it_is(tmp_path: Path) -> None:
    status = ["success", "failed_to_download", "success", "success"]
    for shard in range(2):
        images = [encoded(photo(k)) if s == "success" else None for k, s in enumerate(status)]
        columns = {
            "key": [f"{shard:05}{k:04}" for k in range(4)],
            "status": status,
            "caption": [f"caption {shard}{k}" for k in range(4)],
            "url": ["u"] * 4,
            "jpg": pa.array(images, pa.binary()),
        }
        write_parquet(tmp_path / f"{shard:05}.parquet", columns, group_rows=2)
        (tmp_path / f"{shard:05}_stats.json").write_text("{}")
    reader = opened(path=str(tmp_path), id="key")
    assert captions(reader) == [
        "caption 00",
        "caption 02",
        "caption 03",
        *(f"caption 1{k}" for k in (0, 2, 3)),
    ]
    assert reader.image(1) == encoded(photo(2)) and reader.id(1) == "000000002"
    assert isinstance(reader, Parquet) and reader.blocks.starts.tolist() == [0, 1, 3, 4, 6]


def test_metadata_next_to_shards_points_to_the_shards(tmp_path: Path) -> None:
    write_parquet(tmp_path / "00000.parquet", {"caption": ["a"], "status": ["success"]})
    write_tar(tmp_path / "00000.tar", {"0.jpg": encoded(photo(0)), "0.txt": b"a"})
    with pytest.raises(DataError, match=r"in 00000.tar next to it. Use reader webdataset"):
        opened(path=str(tmp_path))
    assert captions(open_reader({"reader": "webdataset", "path": str(tmp_path)})) == ["a"]  # type: ignore[arg-type]


def test_images_may_be_paths_and_texts_may_be_lists(tmp_path: Path) -> None:
    names = write_photos(tmp_path / "images", 3)
    columns = {
        "file": names,
        "texts": [["a", "b"], [], ["c", " "]],
        "answer": ["x", None, "z"],
        "score": [0.5, None, 2.0],
    }
    path = write_parquet(tmp_path / "t.parquet", columns)
    keys: dict[str, Any] = {"path": path, "image": "file", "caption": "texts"}
    with pytest.raises(DataError, match=r"first images do not exist, .*Set data.image_root"):
        opened(**keys)
    root = str(tmp_path / "images")
    reader = opened(**keys, image_root=root, texts={"answer": "answer"}, target="score")
    assert np.array_equal(decode(reader.image(2)), decode(f"{root}/{names[2]}"))
    assert reader.captions(0) == ["a", "b", "x"] and reader.text_span(0, "answer") == (2, 3)
    assert [reader.caption_start(k) for k in range(4)] == [0, 3, 4, 6]
    assert reader.targets_of(np.arange(3))[[0, 2], 0].tolist() == [0.5, 2.0]
    assert reader.column("answer") == ["x", "", "z"]


def test_a_column_of_names_is_numbered_in_alphabetical_order(tmp_path: Path) -> None:
    columns = {**rows_of(range(3)), "label": ["pear", "apple", None]}
    reader = opened(path=write_parquet(tmp_path / "t.parquet", columns), label="label")
    assert (reader.classes, reader.labels_of(np.arange(3)).tolist()) == (
        ["apple", "pear"],
        [1, 0, -1],
    )


def test_labels_are_numbers_however_they_are_stored(tmp_path: Path) -> None:
    columns = {**rows_of(range(3)), "label": pa.array([1.0, None, 0.0])}
    reader = opened(path=write_parquet(tmp_path / "t.parquet", columns), label="label")
    assert (reader.classes, reader.labels_of(np.arange(3)).tolist()) == (None, [1, -1, 0])
    columns["label"] = pa.array([2**63 + 5, None, 7], pa.uint64())
    reader = opened(path=write_parquet(tmp_path / "u.parquet", columns), label="label")
    assert (reader.classes, reader.labels_of(np.arange(3)).tolist()) == (
        ["7", str(2**63 + 5)],
        [1, -1, 0],
    )


def test_texts_may_be_bytes_or_codes_and_what_is_not_text_breaks_its_row(tmp_path: Path) -> None:
    columns = {**rows_of(range(3)), "caption": pa.array([b"caf\xc3\xa9", b"\xff", None])}
    columns["other"] = pa.array(["x", "y", "x"]).dictionary_encode()
    path = write_parquet(tmp_path / "t.parquet", columns)
    reader = opened(path=path, texts={"other": "other"})
    assert reader.captions(0) == ["caf\xe9", "x"] and reader.captions(2) == ["", "x"]
    assert [reader.caption_start(k) for k in range(4)] == [0, 2, 2, 4]
    with pytest.raises(Broken, match="is not utf-8 text"):
        reader.captions(1)


def test_sources_of_captions_have_weights(tmp_path: Path) -> None:
    columns = {**rows_of(range(1)), "raw": ["raw"], "long": ["long"], "other": [""]}
    keys = {"caption": ["raw", "long", "other"], "caption_weights": [1, 2, 1]}
    reader = opened(path=write_parquet(tmp_path / "t.parquet", columns), **keys)
    assert reader.caption_sources(0) == ([0, 1], (1, 2, 1)) and reader.num_captions == 2


def letters(texts: Any) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[int(text.split()[1])] for text in texts])}


def test_each_row_group_is_read_about_once_in_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "t.parquet", rows_of(range(60)), group_rows=4)
    reader = opened(path=path, shuffle_groups=3)
    loader = Loader(reader, {"text": TextView(letters)}, batch_size=6, seed=0)
    reads: list[int] = []
    read = reader._files.read  # type: ignore[attr-defined]
    monkeypatch.setattr(
        reader._files,  # type: ignore[attr-defined]
        "read",
        lambda file, group, columns: reads.append(group) or read(file, group, columns),
    )
    for epoch in range(2):
        reads.clear()
        seen = [n for batch in loader.batches(epoch) for n in batch.inputs["text"]["input_ids"]]  # type: ignore[union-attr]
        assert sorted(int(n) for n in seen) == list(range(60))
        # Later epochs find some groups in memory.
        assert len(set(reads)) == len(reads) and (epoch or len(reads) == 15)


def test_files_that_cannot_be_read_count_as_lost(tmp_path: Path) -> None:
    for number in range(4):
        write_parquet(tmp_path / f"{number}.parquet", rows_of(range(4 * number, 4 * number + 4)))
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[: len(content) // 2])
    (tmp_path / "2.parquet").unlink()
    path = f"{tmp_path}/{{0..3}}.parquet"
    reader = opened(path=path, max_broken_share=0.5)
    assert captions(reader) == [f"caption {k}" for k in (0, 1, 2, 3, 12, 13, 14, 15)]
    assert [(lost.name, lost.num_samples) for lost in reader.lost] == [
        (f"{tmp_path}/1.parquet", 4),
        (f"{tmp_path}/2.parquet", 4),
    ]
    with pytest.raises(DataError, match=r"about 8 of 16 samples are lost"):
        opened(path=path, max_broken_share=0.1)


def test_a_missing_file_at_a_url_is_lost_and_copies_are_the_same_data(tmp_path: Path) -> None:
    paths = [f"file://{tmp_path}/{folder}/{{0..1}}.parquet" for folder in "ab"]
    for folder in "ab":
        write_parquet(tmp_path / folder / "0.parquet", rows_of(range(4)))
    one, two = (opened(path=path, max_broken_share=0.5) for path in paths)
    assert captions(one) == [f"caption {k}" for k in range(4)]
    assert [(lost.name, lost.num_samples) for lost in one.lost] == [
        (f"file://{tmp_path}/a/1.parquet", 4)
    ]
    assert one.fingerprint() == two.fingerprint()


def test_images_in_another_folder_are_the_same_data(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": ["0.png"], "caption": ["a"]})
    for folder in "ab":
        (tmp_path / folder).mkdir()
        photo(0).save(tmp_path / folder / "0.png")
    one, two = (opened(path=path, image_root=f"{tmp_path}/{folder}") for folder in "ab")
    assert one.fingerprint() == two.fingerprint()
    photo(1).save(tmp_path / "b" / "0.png")
    assert one.fingerprint() != two.fingerprint()


def test_a_damaged_row_group_breaks_its_rows_alone(tmp_path: Path) -> None:
    columns = {**rows_of(range(4)), "image": [bytes([k]) * 5000 for k in range(4)]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2, compression="gzip")
    metadata = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    reader = opened(path=str(path))
    with pytest.raises(Broken, match="row group 0 of its file cannot be read"):
        reader.image(1)
    assert reader.image(3) == b"\3" * 5000 and reader.captions(1) == ["caption 1"]


def test_a_row_group_that_cannot_be_read_for_the_index_is_lost(tmp_path: Path) -> None:
    columns = {**rows_of(range(6)), "caption": [[f"caption {k}" * 200] for k in range(6)]}
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=2, compression="gzip")
    metadata = pq.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    reader = opened(path=str(path), label="label", max_broken_share=0.5)
    assert [reader.image(k) for k in range(4)] == [encoded(photo(k)) for k in (0, 1, 4, 5)]
    assert reader.labels_of(np.arange(4)).tolist() == [0, 1, 1, 2] and reader.caption_start(3) == 3
    assert reader.lost == [(f"{path} group 1", "it cannot be read", 2)]
    with pytest.raises(DataError, match=r"about 2 of 6 samples are lost .*t.parquet group 1"):
        opened(path=str(path), label="label", max_broken_share=0.1)


PICTURE = encoded(photo(0))


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        (pa.array([PICTURE], pa.large_binary()), pa.array(["a"], pa.large_string())),
        (pa.array([PICTURE]).dictionary_encode(), pa.array(["a"]).dictionary_encode()),
        (
            pa.array([{"bytes": PICTURE, "path": None}]),
            pa.array([["a"]], pa.large_list(pa.string())),
        ),
        (pa.array([{"path": "p.png"}]), pa.array([[None, "a", ""]])),
        (pa.array([{"bytes": b"", "path": "p.png"}]), pa.array([b"a"])),
        (pa.array(["p.png"]), pa.array([["a", "a"]], pa.list_(pa.string(), 2))),
    ],
)
def test_columns_are_read_however_they_are_typed(
    tmp_path: Path, image: pa.Array, caption: pa.Array
) -> None:
    """Next to a file without rows, an empty row group, and a file whose captions are all null."""
    (tmp_path / "p.png").write_bytes(PICTURE)
    schema = pa.schema([("image", image.type), ("caption", pa.null())])
    pq.write_table(schema.empty_table(), tmp_path / "0.parquet")
    nulls = pa.table({"image": image, "caption": pa.nulls(1)})
    pq.write_table(nulls, tmp_path / "1.parquet")
    table = pa.table({"image": image, "caption": caption})
    with pq.ParquetWriter(tmp_path / "2.parquet", table.schema) as writer:
        for part in (table, table.slice(0, 0), table):
            writer.write_table(part)
    reader = opened(path=f"{tmp_path}/*.parquet")
    assert len(reader) == 3 and set(captions(reader)) - {""} == {"a"}
    for index in range(3):
        found = reader.image(index)
        assert found == PICTURE or Path(str(found)).read_bytes() == PICTURE


@pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 21, reason="pyarrow 21 writes views")
def test_views_of_texts_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(PICTURE)
    table = pa.table({key: pa.array(["p.png"], pa.string_view()) for key in ("image", "caption")})
    pq.write_table(table, tmp_path / "t.parquet")
    reader = opened(path=f"{tmp_path}/t.parquet")
    assert reader.captions(0) == ["p.png"]
    assert Path(str(reader.image(0))).read_bytes() == PICTURE


def test_texts_of_another_encoding_break_their_rows_alone(tmp_path: Path) -> None:
    latin = pa.StringArray.from_buffers(
        3, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xe9b")
    )
    table = {"caption": latin, "other": latin, "label": latin}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    reader = opened(
        path=f"{tmp_path}/t.parquet", image=None, caption=["caption", "other"], label="label"
    )
    assert reader.captions(0) == ["a", "a"] and reader.captions(2) == ["b", "b"]
    with pytest.raises(Broken, match="its text cannot be read"):
        reader.captions(1)
    assert reader.caption_start(2) == 2 and reader.labels_of(np.arange(3)).tolist() == [0, -1, 1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "{folder}/no_rows.parquet", "target": "n"}, "no row can be read"),
        ({"path": "{folder}/{a..c.parquet"}, "a brace is not closed"),
        ({"path": "{folder}/saved"}, "state.json is damaged: it has no '_data_files'"),
        ({"path": "{folder}/[cs]_*.parquet"}, r"s_structs.parquet: column 'caption' holds struct"),
        ({"caption": "map"}, r"column 'map' \(data.caption\) holds struct<en: string>, not texts"),
        ({"label": "lists"}, r"column 'lists' \(data.label\) holds list<.*>, not one value"),
        ({"image": "lists"}, r"column 'lists' \(data.image\) holds list<.*>, not encoded images"),
        ({"image": "map"}, r"'map' \(data.image\) holds structs of en, without 'bytes' and"),
        ({"target": "caption"}, r"column 'caption' \(data.target\) holds no finite number"),
        ({"path": "{folder}/*lists.parquet"}, r"'caption' holds list<.*>, and string in other"),
        ({"path": "{folder}/twice.parquet"}, r"column 'caption' \(data.caption\) is there twice"),
        ({"caption": "captoin"}, r"no column 'captoin' \(data.caption\). Did you mean 'caption'"),
        ({"image": None, "caption": None}, r"both null"),
        ({"image_root": "x"}, r"data.image_root has no effect: the rows hold the images"),
        ({"caption_weights": [1.0, 2.0]}, r"data.caption_weights has no effect"),
        ({"path": "{folder}/none-*.parquet"}, r"no such file"),
        ({"path": "{folder}/text.parquet"}, r"text.parquet cannot be read"),
        ({"path": "{folder}/empty"}, r"holds no .parquet or .arrow file"),
        ({"split": "val"}, r"has no '{split}' to put it in"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    odd = {"map": [{"en": "a"}] * 2, "lists": [[1, 2]] * 2}
    path = write_parquet(tmp_path / "t.parquet", {**rows_of(range(2)), **odd})
    lists = {**rows_of(range(2)), "caption": [["a"], ["b", "c"]]}
    write_parquet(tmp_path / "b_lists.parquet", lists)
    write_parquet(tmp_path / "a_lists.parquet", rows_of(range(2)))
    twice = pa.table([pa.array(["a"])] * 3, names=["image", "caption", "caption"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "empty").mkdir()
    rows = pa.table({"image": [b""], "caption": ["a"], "n": [1.0]})
    pq.write_table(rows.slice(0, 0), tmp_path / "no_rows.parquet")
    write_parquet(tmp_path / "c_texts.parquet", rows_of(range(2)))
    write_parquet(
        tmp_path / "s_structs.parquet", {**rows_of(range(2)), "caption": [{"en": "a"}] * 2}
    )
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{")
    if "path" in keys:
        keys = {**keys, "path": keys["path"].replace("{folder}", str(tmp_path))}
    with pytest.raises(DataError, match=message) as caught:
        opened(**{"path": path, **keys})
    assert "\n" not in str(caught.value)
