"""Where the rows of a delimited text file begin, found without parsing it, so that a table of any
size is read from the disk by row.

Only line feeds end rows. A quote opens a quoted field only at the field's beginning, as in pandas
and Python's csv module; inside, line feeds belong to the field and two quotes mean one. A quote
anywhere else is a character like any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlkd_cli.data.files.texts import split_lines
from vlkd_cli.errors import DataError

_BLOCK_BYTES = 16 << 20
_LONGEST_LINE_BYTES = 64 << 20
_MOST_LINES_IN_FIELD = 1000
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34


class Rows(NamedTuple):
    """`starts` `[R + 1]` int64: byte offsets where each row begins, and the file's end; `digest` of
    the file's bytes."""

    starts: np.ndarray
    digest: str


def find_rows(path: Path, *, delimiter: str, quotes: bool, scratch: Path) -> Rows:
    """Every row of a file, the header included; blank lines do not count.

    Args:
        path: a file in an encoding in which the bytes of ASCII characters mean nothing else.
        delimiter: between fields, one ASCII character.
        quotes: whether fields may be quoted.
        scratch: folder for the offsets of large files.

    Raises:
        DataError: a quoted field does not end, or a line is longer than any table's.
    """
    offsets = scratch / "starts.bin"
    digest = hashlib.blake2b(digest_size=16)
    finder = _RowFinder(path, delimiter, quotes)
    with open(path, "rb") as file, open(offsets, "wb") as found:
        base, rest = 0, b""
        while data := rest + (read := file.read(_BLOCK_BYTES)):
            digest.update(read)
            end = data.rfind(b"\n") + 1 if read else len(data)
            (finder.starts_in(data[:end]) + base).tofile(found)
            base, rest = base + end, data[end:]
            finder.check_line(len(rest))
        finder.check_end()
        np.array([base], dtype=np.int64).tofile(found)
    return Rows(np.memmap(offsets, dtype=np.int64, mode="r"), digest.hexdigest())


class _RowFinder:
    """Finds the row starts of one block of whole lines after another."""

    def __init__(self, path: Path, delimiter: str, quotes: bool) -> None:
        self.path, self.delimiter, self.quotes = path, delimiter, quotes
        self.lines_before = 0
        self.opened_at: int | None = None
        """Line, from 1, whose quoted field is still open."""

    def starts_in(self, data: bytes) -> np.ndarray:
        """Offsets within the block, int64."""
        if not data:
            return np.zeros(0, dtype=np.int64)
        block = np.frombuffer(data, dtype=np.uint8)
        newlines = np.flatnonzero(block == _NEWLINE)
        starts = np.concatenate([[0], newlines + 1])
        starts = starts[starts < len(block)]
        is_start = self._outside_fields(data, starts) if self.quotes else np.full(len(starts), True)
        first, second = block[starts], block[np.minimum(starts + 1, len(block) - 1)]
        is_start &= ~((first == _NEWLINE) | ((first == _RETURN) & (second == _NEWLINE)))
        self.lines_before += len(newlines)
        return starts.compress(is_start).astype(np.int64)

    def _outside_fields(self, data: bytes, starts: np.ndarray) -> np.ndarray:
        """Which lines do not begin inside a quoted field."""
        outside = np.full(len(starts), True)
        opening = -1  # line of the block in which the open field begins; -1: in an earlier block
        for line in _odd_lines(data, starts):
            if self.opened_at is None:
                stop = starts[line + 1] if line + 1 < len(starts) else len(data)
                if _ends_open(data[starts[line] : stop], self.delimiter):
                    opening, self.opened_at = line, self.lines_before + line + 1
            else:
                self._check_field(self.lines_before + line + 1)
                outside[opening + 1 : line + 1] = False
                self.opened_at = None
        if self.opened_at is not None:
            outside[opening + 1 :] = False
            self._check_field(self.lines_before + len(starts) + 1)
        return outside

    def check_line(self, num_bytes: int) -> None:
        """Refuse a line without an end: no table has one, and it would fill the memory."""
        if num_bytes > _LONGEST_LINE_BYTES:
            raise DataError(
                f"{self.path} line {self.lines_before + 1} is longer than"
                f" {_LONGEST_LINE_BYTES >> 20} MiB. Is it a table file?"
            )

    def check_end(self) -> None:
        """Refuse a field that is open at the end of the file."""
        if self.opened_at is not None:
            raise self._unclosed("")

    def _check_field(self, line: int) -> None:
        assert self.opened_at is not None
        if line - self.opened_at > _MOST_LINES_IN_FIELD:
            raise self._unclosed(f" within {_MOST_LINES_IN_FIELD} lines")

    def _unclosed(self, where: str) -> DataError:
        return DataError(
            f"{self.path} line {self.opened_at}: a quoted field begins here and does not end"
            f"{where}. Close the quote, or set data.quotes: false if quotes are ordinary characters"
            " in this file."
        )


def rows_of(text: str, *, delimiter: str) -> Iterator[list[str]]:
    """The rows of a small table that was read whole; fields may be quoted, blank lines do not
    count.

    Raises:
        ValueError: a quoted field does not end within 1,000 lines.
    """
    lines: list[str] = []
    for line in split_lines(text):
        lines.append(line)
        if not line and len(lines) == 1:
            lines.clear()
            continue
        try:
            row = split_row("\n".join(lines), delimiter=delimiter, quotes=True)
        except ValueError:
            if len(lines) > _MOST_LINES_IN_FIELD:
                break
            continue
        lines.clear()
        yield row
    if lines:
        raise ValueError(
            f"a quoted field does not end in the row that begins with '{lines[0][:40]}'"
        )


def split_row(text: str, *, delimiter: str, quotes: bool) -> list[str]:
    """The fields of one row.

    Raises:
        ValueError: a quoted field does not end.
    """
    text = text.rstrip("\r\n")
    if not quotes or '"' not in text:
        return text.split(delimiter)
    fields: list[str] = []
    offset = 0
    while True:
        field = ""
        if text.startswith('"', offset):
            field, offset = _quoted(text, offset + 1)
        stop = text.find(delimiter, offset)
        fields.append(field + (text[offset:] if stop < 0 else text[offset:stop]))
        if stop < 0:
            return fields
        offset = stop + 1


def _quoted(text: str, offset: int) -> tuple[str, int]:
    """What a quoted field holds that begins here, and where it ends."""
    pieces: list[str] = []
    while True:
        end = text.find('"', offset)
        if end < 0:
            raise ValueError("its quotes do not match")
        pieces.append(text[offset:end])
        if not text.startswith('"', end + 1):
            return '"'.join(pieces), end + 1
        offset = end + 2


def _odd_lines(data: bytes, starts: np.ndarray) -> list[int]:
    """Lines with an odd number of quotes: only these can open or close a field that spans lines."""
    marks = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == _QUOTE)
    if not len(marks):
        return []
    lines, counts = np.unique(np.searchsorted(starts, marks, side="right") - 1, return_counts=True)
    return lines[counts % 2 == 1].tolist()  # type: ignore[no-any-return]


def _ends_open(line: bytes, delimiter: str) -> bool:
    """Whether a line that begins a row ends inside a quoted field."""
    try:
        split_row(line.decode("latin-1"), delimiter=delimiter, quotes=True)
    except ValueError:
        return True
    return False
