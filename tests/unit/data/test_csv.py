from __future__ import annotations

import csv
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_sets import write_photos, write_table
from vlkd_cli.data import readers
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files import cached_arrays as kept_arrays
from vlkd_cli.data.files.table_rows import find_rows
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
    assert [reader._fields(row) for row in range(400)] == rows


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
        "filepath,title,kind,number\nphoto00.jpg,a,pear,3\nphoto01.jpg,b,apple,0\nphoto02.jpg,c,,1\n",
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


def test_a_kept_index_is_mapped_not_copied_and_follows_the_file(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(photos / "cache"))
    monkeypatch.setattr(readers.csv, "KEEP_ABOVE_BYTES", 0)
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


def test_an_unwritable_cache_says_which_variable_to_set(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "file").write_text("")
    monkeypatch.setenv("VLKD_CACHE", str(photos / "file"))
    monkeypatch.setattr(readers.csv, "KEEP_ABOVE_BYTES", 0)
    with pytest.raises(DataError, match=r"cannot write .*Set VLKD_CACHE"):
        CSV(path=str(write_table(photos / "data.tsv", [("photo00.jpg", "a")])))
    assert kept_arrays.data_cache() == photos / "file" / "data"


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
            r"its first images are not there, e.g. .*other/photo00.jpg. Set data.image_root",
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
def test_a_table_that_cannot_be_read_says_why_and_what_to_do(
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
