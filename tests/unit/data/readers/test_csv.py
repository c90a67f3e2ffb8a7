from __future__ import annotations

import csv
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_sets import photo, write_photos, write_table
from vlkd_cli.data import readers
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import data_cache
from vlkd_cli.data.files.table_rows import find_rows
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.csv import CSV
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_photos(tmp_path, 4)
    return tmp_path


def write(folder: Path, text: str, name: str = "data.csv", encoding: str = "utf-8") -> str:
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


def test_rows_are_those_of_the_csv_module_for_every_kind_of_quoting(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    pieces = [
        "plain",
        "com,ma",
        'quo"te',
        "line\nbreak",
        '"',
        "two\n\nbreaks",
        "",
        "ünïcode",
        "return\r\nline",
        '""',
        ",",
        "tail\n",
    ]
    rows = [
        [str(number), *(pieces[k] for k in draw.integers(len(pieces), size=2))]
        for number in range(400)
    ]
    path = tmp_path / "data.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["filepath", "title", "more"], *rows])
    (tmp_path / "0").write_bytes(b"")
    reader = CSV(path=str(path), caption=["title", "more"], group=False)
    assert len(reader) == len(rows)
    assert [reader._table.fields(row) for row in range(400)] == rows


def test_blocks_of_any_size_find_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        'a,b\n1,"x\n""y"\n\n\r\n2,plain\r\n3,"long\nlong\nlong"\n4,5" pipe and'
        ' "stray\n5,"",""\n6,end'
    )
    path = tmp_path / "data.csv"
    path.write_bytes(text.encode())
    whole = find_rows(path, delimiter=",", quotes=True, scratch=tmp_path)
    expected = np.array(whole.starts)
    lines = [text.encode()[a:b] for a, b in pairwise(expected)]
    assert [line[:1] for line in lines] == [b"a", b"1", b"2", b"3", b"4", b"5", b"6"]
    for size in (1, 3, 7, 16, 50):
        monkeypatch.setattr("vlkd_cli.data.files.table_rows._BLOCK_BYTES", size)
        again = find_rows(path, delimiter=",", quotes=True, scratch=tmp_path)
        assert np.array_equal(again.starts, expected) and again.digest == whole.digest


def test_rows_of_one_image_are_one_sample_wherever_they_stand(photos: Path) -> None:
    rows = [("photo01.jpg", "a"), ("photo00.jpg", "b"), ("photo01.jpg", "c"), ("photo03.jpg", "d")]
    path = str(write_table(photos / "data.tsv", rows))
    grouped, single = CSV(path=path), CSV(path=path, group=False)
    assert [list(grouped.captions(index)) for index in range(len(grouped))] == [
        ["a", "c"],
        ["b"],
        ["d"],
    ]
    assert [Path(grouped.name(index)).name for index in range(3)] == [
        "photo01.jpg",
        "photo00.jpg",
        "photo03.jpg",
    ]
    assert len(single) == 4 and single.num_captions == 4 and grouped.num_captions == 4


def test_several_captions_in_a_cell_and_in_columns(photos: Path) -> None:
    path = write(photos, "filepath,title,alt\nphoto00.jpg,one | two |,x\nphoto01.jpg,three,\n")
    cells = CSV(path=path, caption_separator="|")
    assert [cells.captions(0), cells.captions(1)] == [["one", "two"], ["three"]]
    assert [cells.caption_start(index) for index in range(3)] == [0, 2, 3]
    columns = CSV(path=path, caption=["title", "alt"])
    assert [columns.captions(0), columns.captions(1)] == [["one | two |", "x"], ["three"]]
    assert columns.num_captions == 3


def test_labels_are_numbers_or_names_in_alphabetical_order(photos: Path) -> None:
    path = write(
        photos,
        "filepath,title,kind,number\nphoto00.jpg,a,pear,3\n"
        "photo01.jpg,b,apple,0\nphoto02.jpg,c,,1\n",
    )
    named, numbered = CSV(path=path, label="kind"), CSV(path=path, label="number")
    assert named.classes == ["apple", "pear"] and [named.label(index) for index in range(3)] == [
        1,
        0,
        -1,
    ]
    assert numbered.classes is None and numbered.labels_of(np.arange(3)).tolist() == [3, 0, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_encodings_are_read(photos: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(photos / "cache"))
    path = write(photos, "filepath,title\r\nphoto00.jpg,Äpfel für alle\r\n", encoding=encoding)
    assert CSV(path=path, encoding=encoding).captions(0) == ["Äpfel für alle"]


def test_urls_and_compressed_tables_are_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("VLKD_CACHE", str(photos / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/data.tsv", b"filepath\ttitle\nimages/a.jpg\ta caption\n")
    memory.pipe("/bucket/images/a.jpg", (photos / "photo00.jpg").read_bytes())
    reader = CSV(path="memory://bucket/data.tsv")
    assert reader.image(0) == (photos / "photo00.jpg").read_bytes()
    assert reader.name(0) == "memory://bucket/images/a.jpg" and reader.captions(0) == ["a caption"]
    import gzip

    (photos / "data.csv.gz").write_bytes(gzip.compress(b"filepath,title\nphoto00.jpg,packed\n"))
    assert CSV(path=str(photos / "data.csv.gz")).captions(0) == ["packed"]


def test_a_cached_index_is_mapped_not_copied_and_follows_the_file(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(photos / "cache"))
    monkeypatch.setattr(readers.csv, "CACHE_ABOVE_BYTES", 0)
    rows = [(f"photo0{k % 4}.jpg", f"caption {k}") for k in range(2000)]
    path = write_table(photos / "data.tsv", rows)
    first, second = CSV(path=str(path)), CSV(path=str(path))
    assert len(list((photos / "cache" / "data" / "index").iterdir())) == 1
    assert len(pickle.dumps(second)) < 3000
    assert (
        pickle.loads(pickle.dumps(second)).captions(2)
        == first.captions(2)
        == [f"caption {k}" for k in range(2, 2000, 4)]
    )
    write_table(path, rows[:9])
    assert CSV(path=str(path)).num_captions == 9


def test_the_error_for_an_unwritable_cache_names_the_variable_to_set(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "file").write_text("")
    monkeypatch.setenv("VLKD_CACHE", str(photos / "file"))
    monkeypatch.setattr(readers.csv, "CACHE_ABOVE_BYTES", 0)
    with pytest.raises(DataError, match=r"cannot write .*Set VLKD_CACHE"):
        CSV(path=str(write_table(photos / "data.tsv", [("photo00.jpg", "a")])))
    assert data_cache() == photos / "file" / "data"


def test_parts_of_the_images_are_disjoint_and_fixed(photos: Path) -> None:
    path = str(
        write_table(
            photos / "data.tsv",
            [("photo00.jpg" if k == 0 else f"x{k}.jpg", f"c{k}") for k in range(50)],
        )
    )
    parts: list[Any] = [
        open_reader({"reader": "csv", "path": path, "part": part}) for part in ([0, 0.8], [0.8, 1])
    ]
    captions = [[part.captions(index)[0] for index in range(len(part))] for part in parts]
    assert [len(own) for own in captions] == [40, 10]
    assert set(captions[0]) | set(captions[1]) == {f"c{k}" for k in range(50)}
    assert captions[1] != [f"c{k}" for k in range(40, 50)]
    assert parts[0].fingerprint() != parts[1].fingerprint()


def test_malformed_rows_are_broken_samples_with_their_row(photos: Path) -> None:
    reader = CSV(path=write(photos, "filepath,title\nphoto00.jpg,a\nphoto01.jpg,b,c\n,d\n"))
    assert len(reader) == 3
    with pytest.raises(Broken, match="row 2 has 3 columns, the header 2"):
        reader.captions(1)
    with pytest.raises(Broken, match="names no image"):
        reader.image(2)
    assert reader.name(2).endswith("data.csv row 3")


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        ("", {}, r"data.csv is empty. Its first line names the columns."),
        ("\n\n", {}, r"data.csv is empty"),
        ("filepath,title\n", {}, r"has a header and no rows"),
        (
            "filepath,titel\nphoto00.jpg,a\n",
            {},
            r"no column 'title' \(data.caption\). Did you mean 'titel'\? Its columns: filepath",
        ),
        ("image,title\nphoto00.jpg,a\n", {}, r"has no column 'filepath' \(data.image\)"),
        (
            "filepath\ttitle\nphoto00.jpg\ta\n",
            {},
            r"looks separated by a tab. Set data.sep: '\\t'.",
        ),
        (
            "filepath,title\nphoto00.jpg,a\n",
            {"sep": ";"},
            r"looks separated by a comma. Set data.sep: ','.",
        ),
        (
            "filepath,title\nphoto00.jpg,a\n",
            {"image_root": "nowhere"},
            r"data.image_root nowhere: no such folder.",
        ),
        (
            "filepath,title\nother/photo00.jpg,a\n",
            {},
            r"its first images do not exist, e.g. .*other/photo00.jpg. Set data.image_root",
        ),
        ("filepath,title\nphoto00.jpg,a\n", {"sep": ",,"}, r"it is one ASCII character"),
        (
            "filepath,title\nphoto00.jpg,a\n",
            {"encoding": "utf-9"},
            r"data.encoding 'utf-9' is unknown",
        ),
        ("filepath,title\nphoto00.jpg,a\n", {"split": "val"}, r"has no '{split}' to put it in"),
        ("filepath,title\nphoto00.jpg,a\n", {"part": [0.5, 0.2]}, r"data.part is \[0.5, 0.2\]"),
        (
            "filepath,title\nphoto00.jpg,a,b\n",
            {},
            r"row 1 has 3 columns, the header 2. Check data.sep",
        ),
        (
            "filepath,title,title\nphoto00.jpg,a,b\n",
            {},
            r"has 2 columns 'title' \(data.caption\). Rename all but the right one.",
        ),
        (
            "filepath,title\rphoto00.jpg,a\rphoto01.jpg,b\r",
            {},
            r"ends its lines with carriage returns alone. Write it with line feeds.",
        ),
        (
            'filepath,title\nphoto00.jpg,a\nphoto01.jpg,"b\n' + "photo01.jpg,c\n" * 1100,
            {},
            r"line 3: a quoted field begins .*data.quotes: false",
        ),
    ],
)
def test_the_error_for_an_unreadable_table_gives_reason_and_remedy(
    photos: Path, text: str, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_reader({"reader": "csv", "path": write(photos, text), **keys})
    assert "\n" not in str(caught.value)


def test_quotes_can_be_ordinary_characters(photos: Path) -> None:
    path = write(photos, 'filepath,title\nphoto00.jpg,"b\nphoto01.jpg,c"\n')
    assert [CSV(path=path, quotes=False).captions(index) for index in range(2)] == [['"b'], ['c"']]


def test_a_missing_table_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table nowhere.csv: no such file. Check data.path"):
        CSV(path="nowhere.csv")
    with pytest.raises(DataError, match=r"is a folder; name a file"):
        CSV(path=str(tmp_path))


def test_bytes_of_another_encoding_break_only_their_row(photos: Path) -> None:
    (photos / "data.csv").write_bytes(
        "filepath,title\nphoto00.jpg,fine\nphoto01.jpg,Äpfel\n".encode("latin-1")
    )
    reader = CSV(path=str(photos / "data.csv"))
    assert reader.captions(0) == ["fine"]
    with pytest.raises(Broken, match=r"row 2 cannot be read .*utf-8"):
        reader.captions(1)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_only_line_feeds_end_rows(photos: Path, mark: str) -> None:
    rows = [f'photo0{k}.jpg,"number {k}, quoted",first{mark}second' for k in range(4)]
    path = write(photos, "\n".join(["filepath,title,note", *rows]) + "\n")
    reader = CSV(path=path, caption=["title", "note"])
    assert len(reader) == 4
    assert reader.captions(3) == ["number 3, quoted", f"first{mark}second"]


def test_ids_of_any_length_are_numbered_and_small_numbers_are_not(photos: Path) -> None:
    rows = [f"photo0{k}.jpg,a,{10**20 + 3 - k},{10**12 + k % 2},{7 * k}" for k in range(4)]
    path = write(photos, "\n".join(["filepath,title,long,large,class", *rows]) + "\n")
    long, large = CSV(path=path, label="long"), CSV(path=path, label="large")
    assert long.labels_of(np.arange(4)).tolist() == [3, 2, 1, 0]
    assert long.classes == [str(10**20 + k) for k in range(4)]
    assert large.labels_of(np.arange(4)).tolist() == [0, 1, 0, 1]
    assert CSV(path=path, label="class").labels_of(np.arange(4)).tolist() == [0, 7, 14, 21]


def test_byte_order_marks_and_long_fields_are_read(photos: Path) -> None:
    path = write(
        photos, f'\ufefffilepath,title\nphoto00.jpg,\ufeffa\nphoto01.jpg,"{"b" * 200_000}"\n'
    )
    reader = CSV(path=path)
    assert reader.captions(0) == ["a"] and reader.captions(1) == ["b" * 200_000]


def test_a_nul_in_a_path_breaks_that_row_alone(photos: Path) -> None:
    reader = CSV(path=write(photos, "filepath,title\nphoto00.jpg,a\nphoto\0.jpg,b\n"))
    assert decode(str(reader.image(0))).shape == (40, 56, 3)
    with pytest.raises(Broken, match="no such file"):
        decode(str(reader.image(1)))
    assert reader.fingerprint()


def test_home_is_expanded_for_the_table_and_for_the_images(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photos))
    (photos / "tables").mkdir()
    write(photos, "filepath,title\nphoto00.jpg,a\n~/photo01.jpg,b\n")
    write(photos / "tables", "filepath,title\nphoto00.jpg,a\n")
    reader = CSV(path="~/data.csv")
    assert [reader.image(k) for k in (0, 1)] == [str(photos / f"photo0{k}.jpg") for k in (0, 1)]
    assert CSV(path="~/tables/data.csv", image_root="~").image(0) == str(photos / "photo00.jpg")


def test_a_damaged_compressed_table_is_reported_in_one_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    monkeypatch.setenv("VLKD_CACHE", str(photos / "cache"))
    whole = gzip.compress(b"filepath,title\nphoto00.jpg,packed\n" * 100)
    for number, content in enumerate([whole[:40], b"no gzip", b"", whole[:-8] + bytes(8)]):
        (photos / f"{number}.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be unpacked|is empty") as caught:
            CSV(path=str(photos / f"{number}.csv.gz"))
        assert "\n" not in str(caught.value)
    (photos / "set[1].csv.gz").write_bytes(gzip.compress(b"filepath,title\nphoto00.jpg,packed\n"))
    assert CSV(path=str(photos / "set[1].csv.gz")).captions(0) == ["packed"]


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlkd_cli.data.files.table_rows._LONGEST_LINE_BYTES", 1000)
    monkeypatch.setattr("vlkd_cli.data.files.table_rows._BLOCK_BYTES", 100)
    path = write(photos, "filepath,title\nphoto00.jpg,a\nphoto01.jpg," + "b" * 5000)
    with pytest.raises(DataError, match=r"data.csv line 3 is longer than .* Is it a table file\?"):
        CSV(path=path)


TRIPLES = """\
question,answer,other,wrong,score,key,filepath
how,so,thus,no,0.5,q1,photo00.jpg
why,because,,never,nan,q2,photo01.jpg
when,now,soon,,many,q3,photo02.jpg
"""


def test_named_texts_follow_the_captions_in_their_order(photos: Path) -> None:
    reader = CSV(
        path=write(photos, TRIPLES),
        caption="question",
        texts={"answer": ["answer", "other"], "wrong": "wrong"},
        image=None,
    )
    assert reader.text_names == ("answer", "wrong") and reader.image(0) is None
    assert [list(reader.captions(k)) for k in range(3)] == [
        ["how", "so", "thus", "no"],
        ["why", "because", "never"],
        ["when", "now", "soon", ""],
    ]
    assert [reader.text_span(0), reader.text_span(0, "answer")] == [(0, 1), (1, 3)]
    assert [reader.text_span(k, "wrong") for k in range(3)] == [(3, 4), (2, 3), (3, 4)]
    assert reader.caption_starts(np.arange(4)).tolist() == [0, 4, 7, 11]
    with pytest.raises(KeyError):
        reader.text_span(0, "rong")
    assert reader.name(1).endswith("data.csv row 2")


def test_targets_are_float32_and_nan_where_a_cell_is_not_a_finite_number(photos: Path) -> None:
    reader = CSV(path=write(photos, TRIPLES), caption="question", target="score")
    assert reader.num_targets == 1 and reader.targets_of(np.array([0])).dtype == np.float32
    assert np.array_equal(
        reader.targets_of(np.arange(3)), np.float32([[0.5], [np.nan], [np.nan]]), equal_nan=True
    )
    none = CSV(path=write(photos, TRIPLES), caption="question")
    assert none.num_targets == 0 and none.targets_of(np.arange(2)).shape == (2, 0)


def test_ids_are_the_column_or_the_name(photos: Path) -> None:
    path = write(photos, TRIPLES)
    assert CSV(path=path, caption="question", id="key").id(1) == "q2"
    assert CSV(path=path, caption="question").id(1) == str(photos / "photo01.jpg")


def test_images_alone_have_no_captions(photos: Path) -> None:
    reader = CSV(path=write(photos, TRIPLES), caption=None)
    assert not reader.has_captions and reader.captions(0) == [] and reader.num_captions == 0
    assert reader.image(2) == str(photos / "photo02.jpg")
    assert reader.caption_starts(np.arange(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"caption": None, "image": None}, "data.image and data.caption are both null"),
        ({"caption": "question", "texts": {"main": "answer"}}, r"data.texts.main: .*is taken"),
        ({"caption": "question", "texts": {"a b": "answer"}}, r"data.texts.a b: a name is a word"),
        ({"caption": "question", "texts": {"a": []}}, r"data.texts.a is empty"),
        (
            {"caption": "question", "texts": {"a": "anser"}},
            r"no column 'anser' \(data.texts.a\). Did you mean 'answer'\?",
        ),
        (
            {"caption": "question", "texts": {"a": "answer"}, "group": True},
            r"data.group: true does not go with data.texts",
        ),
        (
            {"caption": "question", "target": "score", "group": True},
            r"data.group: true does not go with data.target",
        ),
        (
            {"caption": "question", "image": None, "image_root": "x"},
            "data.image_root has no effect with data.image: null",
        ),
        (
            {"caption": None, "caption_separator": "|"},
            "data.caption_separator has no effect with data.caption: null",
        ),
        (
            {"caption": "question", "image": None, "group": True},
            r"data.group: true does not go with data.image: null",
        ),
    ],
)
def test_texts_that_do_not_fit_are_refused(
    photos: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        CSV(path=write(photos, TRIPLES), **keys)


def test_a_column_names_the_group_of_each_sample(tmp_path: Path) -> None:
    rows = [["a.jpg", "x", "forest"], ["a.jpg", "y", "forest"], ["b.jpg", "z", " lake "]]
    photo(0).save(tmp_path / "a.jpg")
    photo(1).save(tmp_path / "b.jpg")
    path = write_table(tmp_path / "data.tsv", rows, header=("filepath", "title", "place"))
    reader = CSV(path=str(path), group="place")
    assert reader.has_groups and len(reader) == 2
    assert [reader.group(index) for index in range(2)] == ["forest", "lake"]
    assert reader.fingerprint() != CSV(path=str(path)).fingerprint()
    assert not CSV(path=str(path), group=True).has_groups
    half = open_reader({"reader": "csv", "path": str(path), "group": "place", "part": [0, 0.5]})
    assert half.has_groups and half.group(0) in ("forest", "lake")
    with pytest.raises(DataError, match="plaec"):
        CSV(path=str(path), group="plaec")
    write_table(tmp_path / "data.tsv", [["a.jpg", "x", ""]], header=("filepath", "title", "place"))
    with pytest.raises(DataError, match="its group is empty"):
        CSV(path=str(path), group="place").group(0)
