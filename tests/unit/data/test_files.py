"""Small parts that readers are made of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli.data.files.fingerprints import MOST_FILES, digest_files, digest_of, probed
from vlkd_cli.data.files.remote import expanded, is_url, joined, parent_of
from vlkd_cli.data.files.row_groups import group_rows, row_key
from vlkd_cli.data.files.table_rows import rows_of, split_row
from vlkd_cli.data.files.tar_members import Parts, split_member, suffix_of_key
from vlkd_cli.data.files.text_table import TextTable


def test_a_text_table_gives_back_any_strings() -> None:
    texts = ["", "a", "two\nlines", "\U0001f600", "lone \ud83d", os.fsdecode(b"caf\xe9.jpg"), "\0"]
    table = TextTable(iter(texts))
    assert [table[index] for index in range(len(table))] == texts
    assert table.slice(1, 3) == texts[1:3] and table[-1] == "\0"
    assert table.digest() == TextTable(texts).digest() != TextTable(["a", *texts[1:]]).digest()
    with pytest.raises(IndexError):
        table[len(texts)]


def test_digests_follow_sizes_and_contents_and_never_wait(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0" * 2000)
    before = digest_files([str(tmp_path / "a")])
    (tmp_path / "a").write_bytes(b"0" * 1999 + b"1")
    assert digest_files([str(tmp_path / "a")]) != before
    os.mkfifo(tmp_path / "pipe")
    missing = digest_files([str(tmp_path / "none")])
    assert digest_files([str(tmp_path / "pipe")]) == digest_files(["nul\0"]) == missing
    assert digest_of("a", 1) != digest_of("a", "1") and digest_of("\ud83d")


def test_large_sets_are_probed_evenly() -> None:
    assert list(probed(3)) == [0, 1, 2]
    places = list(probed(10 * MOST_FILES))
    assert (len(places), places[0], places[-1]) == (MOST_FILES, 0, 10 * MOST_FILES - 1)


def test_paths_are_joined_below_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert joined("root/", "a.jpg") == "root/a.jpg" and joined("", "a.jpg") == "a.jpg"
    assert joined("root", "/a.jpg") == "/a.jpg" and joined("root", "~/a.jpg") == "/home/me/a.jpg"
    assert joined("s3://b/c", "a.jpg") == "s3://b/c/a.jpg" and is_url(joined("x", "file:///a"))
    assert expanded("~/x") == "/home/me/x" and expanded("s3://~/x") == "s3://~/x"
    assert expanded("~nobody-of-this-name/x") == "~nobody-of-this-name/x"
    assert parent_of("s3://b/c.csv") == "s3://b" and parent_of("a/b.csv") == "a"


def test_rows_are_grouped_in_the_order_of_their_first_one() -> None:
    groups = group_rows(np.array([row_key(name) for name in "babcab"], dtype=np.uint64))
    assert groups is not None
    assert groups.rows.tolist() == [0, 2, 5, 1, 4, 3] and groups.starts.tolist() == [0, 3, 5, 6]
    assert groups.first_rows().tolist() == [0, 1, 3]
    assert groups.sums(np.arange(6)).tolist() == [7, 5, 3]
    assert group_rows(np.arange(4, dtype=np.uint64)) is None


def test_a_row_is_split_at_its_delimiters_outside_of_quotes() -> None:
    assert split_row('a,"b, ""c""",d"e\r\n', delimiter=",", quotes=True) == ["a", 'b, "c"', 'd"e']
    assert split_row('"a"b,""', delimiter=",", quotes=True) == ["ab", ""]
    assert split_row('"a,b"', delimiter=",", quotes=False) == ['"a', 'b"']
    with pytest.raises(ValueError, match="quotes do not match"):
        split_row('a,"b', delimiter=",", quotes=True)
    assert list(rows_of('a;"b\n\nc"\n\nd;e', delimiter=";")) == [["a", "b\n\nc"], ["d", "e"]]
    with pytest.raises(ValueError, match="a quoted field does not end"):
        list(rows_of('a,"b\nc', delimiter=","))


def test_members_are_parted_at_the_first_dot_of_their_name() -> None:
    assert split_member("./a.b/0.SEG.png") == ("a.b/0", "seg.png")
    assert split_member("0") == ("0", "")
    for hidden in ("._0.jpg", "a/.b/0.jpg", "__MACOSX/0.jpg"):
        assert split_member(hidden) is None
    assert suffix_of_key("..JPG") == "jpg"


def test_the_first_suffix_that_a_sample_has_is_its_image() -> None:
    parts = Parts(("png", "jpg"), ("txt",))
    assert parts.of_image({"jpg": 1, "txt": 2}) == 1 and parts.of_image({"txt": 2}) is None
    assert parts.texts_in({"txt": b" a \n"}) == {"main": ["a"]} and parts.label_in({}) == -1
