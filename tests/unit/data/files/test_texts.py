from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlkd_cli.data.files.texts import (
    clean_text,
    decode_text,
    entries_of,
    parse_json,
    read_at,
    read_entries,
    read_file,
    split_lines,
    text_of,
)
from vlkd_cli.errors import DataError

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"


def test_only_line_feeds_end_lines() -> None:
    assert split_lines(f"a{SEPARATORS}b\nc\r\n\nd") == [f"a{SEPARATORS}b", "c", "", "d"]
    assert split_lines("") == [] and split_lines("a\n") == ["a"] and split_lines("\n") == [""]
    assert entries_of(f"  a{SEPARATORS}b \n\n \t\nc") == [f"a{SEPARATORS}b", "c"]


def test_a_byte_order_mark_is_not_part_of_a_text() -> None:
    assert (
        decode_text(b"\xef\xbb\xbfcat") == clean_text("\ufeffcat") == text_of("\ufeffcat") == "cat"
    )
    assert entries_of("\ufeffcat\n\ufeffdog\n\ufeff\n") == ["cat", "dog"]
    assert parse_json(b'\xef\xbb\xbf["\xef\xbb\xbfcat"]') == ["\ufeffcat"]
    assert parse_json('\ufeff"cat"') == parse_json('"cat"'.encode("utf-16")) == "cat"


def test_a_file_in_utf_16_is_refused_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(b"cat\n" + "dog\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"names.txt:2: holds a NUL character, so it is not utf-8"):
        read_entries(tmp_path / "names.txt")


def test_lone_surrogates_are_replaced_and_pairs_joined() -> None:
    assert clean_text("smile \ud83d here") == "smile \ufffd here"
    assert clean_text("\ude00\ud83d\ude00") == "\ufffd\U0001f600"
    assert text_of(parse_json(b'"\\ud83d"')) == "\ufffd"
    assert clean_text("caf\xe9 \U0001f600") == "caf\xe9 \U0001f600"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "Expecting value"),
        (b"", "Expecting value"),
        (b'"caf\xe9"', "byte 4 is not utf-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "limit"),
    ],
)
def test_whatever_is_wrong_with_json_is_a_value_error(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(content)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"en": "a"}, "an object, not text"),
        (["a"], "a list, not text"),
        (3, "a number, not text"),
        (0.5, "a number, not text"),
        (True, "a truth value, not text"),
        (None, "null, not text"),
    ],
)
def test_only_strings_are_texts(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_of(value)


def test_bytes_of_another_encoding_are_reported_with_their_position(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"byte 3 \(0xe9\) is not utf-8 text"):
        decode_text(b"caf\xe9")
    with pytest.raises(ValueError, match="encoding 'utf-9' is unknown"):
        decode_text(b"cafe", "utf-9")
    assert decode_text(b"caf\xe9", "latin-1") == "caf\xe9"
    (tmp_path / "names.txt").write_bytes(b"caf\xe9\ndog\n")
    with pytest.raises(
        DataError, match=r"names.txt:1: byte 3 .* Save the file as utf-8."
    ) as caught:
        read_entries(tmp_path / "names.txt")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"no.txt: cannot be read: No such file"):
        read_entries(tmp_path / "no.txt")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError) as caught:
        read_file(tmp_path / "pipe")
    assert caught.value.strerror == "it is a pipe, socket or device, not a file"
    with pytest.raises(OSError) as caught:
        read_file(tmp_path)
    assert caught.value.strerror == "it is a folder, not a file"
    with pytest.raises(FileNotFoundError):
        read_file("nul\0byte")


def test_no_more_is_read_than_the_file_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with open(tmp_path / "a", "rb") as file:
        assert read_at(file.fileno(), 2, 3) == b"234"
        for start, size in ((2, 1 << 60), (11, 0), (-1, 3), (3, -1)):
            with pytest.raises(ValueError, match="ends before"):
                read_at(file.fileno(), start, size)
