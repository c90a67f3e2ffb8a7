"""Where the rows of a delimited text file begin, found without parsing it, so that a table of any
size is read from the disk by row.

A quote opens a quoted field only at the field's beginning, as in pandas and Python's csv module;
inside, line breaks belong to the field and two quotes stand for one. A quote anywhere else is a
character like any other.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlkd_cli.errors import DataError

_BLOCK_BYTES = 16 << 20
_MOST_LINES_IN_FIELD = 1000
_NEWLINE, _RETURN, _QUOTE = 10, 13, 34


class Rows(NamedTuple):
    """`starts` `[R + 1]` int64: byte offsets where each row begins, and the file's end; `digest` of
    the file's bytes."""

    starts: np.ndarray
    digest: str


def find_rows(path: Path, *, delimiter: str, quotes: bool, scratch: Path) -> Rows:
    """Every row of a file, the header included; blank lines are none.

    Args:
        path: a file in an encoding in which the bytes of ASCII characters stand for nothing else.
        delimiter: between fields, one ASCII character.
        quotes: whether fields may be quoted.
        scratch: folder for the offsets of large files.

    Raises:
        DataError: a quoted field does not end.
    """
    offsets = scratch / "starts.bin"
    digest = hashlib.blake2b(digest_size=16)
    opening: int | None = None  # byte offset of the line whose quoted field is still open
    opened_at = 0
    with open(path, "rb") as file, open(offsets, "wb") as found:
        base, carry = 0, b""
        last_start = 0
        first_line = 1
        while True:
            read = file.read(_BLOCK_BYTES)
            digest.update(read)
            data = carry + read
            if not data:
                break
            end = len(data) if not read else data.rfind(b"\n") + 1
            block = np.frombuffer(data, dtype=np.uint8, count=end)
            newlines = np.flatnonzero(block == _NEWLINE)
            line_starts = np.concatenate([[0], newlines + 1])[
                : len(newlines) + (end > (newlines[-1] + 1 if len(newlines) else 0))
            ]
            is_start = np.ones(len(line_starts), dtype=bool)
            if quotes:
                for line in _odd_lines(block, line_starts):
                    line = int(line)
                    text = data[
                        line_starts[line] : (
                            line_starts[line + 1] if line + 1 < len(line_starts) else end
                        )
                    ]
                    if opening is None:
                        if _ends_open(text, delimiter.encode()):
                            opening, opened_at = line, first_line + line
                    else:
                        _check_length(path, first_line + line - opened_at, opened_at)
                        is_start[opening + 1 : line + 1] = False
                        opening = None
                if opening is not None:
                    is_start[opening + 1 :] = False
                    opening = -1
                    _check_length(path, first_line + len(line_starts) - opened_at, opened_at)
            if end:
                first = block[line_starts]
                second = block[np.minimum(line_starts + 1, end - 1)]
                is_start &= ~((first == _NEWLINE) | ((first == _RETURN) & (second == _NEWLINE)))
            (line_starts[is_start].astype(np.int64) + base).tofile(found)
            first_line += len(newlines)
            base, carry = base + end, data[end:]
            last_start = base
            if not read:
                break
        if opening is not None:
            _check_length(path, _MOST_LINES_IN_FIELD + 1, opened_at)
        np.array([last_start], dtype=np.int64).tofile(found)
    return Rows(np.memmap(offsets, dtype=np.int64, mode="r"), digest.hexdigest())


def split_row(text: str, *, delimiter: str, quotes: bool) -> list[str]:
    """The fields of one row.

    Raises:
        ValueError: the row is malformed.
    """
    text = text.rstrip("\r\n")
    if not quotes or '"' not in text:
        return text.split(delimiter)
    try:
        rows = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    if len(rows) != 1:
        raise ValueError("its quotes do not match")
    return rows[0]


def _odd_lines(block: np.ndarray, line_starts: np.ndarray) -> np.ndarray:
    """Lines with an odd number of quotes: only these can open or close a field that spans lines."""
    marks = np.flatnonzero(block == _QUOTE)
    if not len(marks):
        return marks
    lines, counts = np.unique(
        np.searchsorted(line_starts, marks, side="right") - 1, return_counts=True
    )
    return lines[counts % 2 == 1]


def _ends_open(line: bytes, delimiter: bytes) -> bool:
    """Whether a line that begins a row ends inside a quoted field."""
    position = 0
    while True:
        if line[position : position + 1] == b'"':
            position += 1
            while True:
                position = line.find(b'"', position)
                if position < 0:
                    return True
                if line[position + 1 : position + 2] != b'"':
                    break
                position += 2
        position = line.find(delimiter, position)
        if position < 0:
            return False
        position += 1


def _check_length(path: Path, lines: int, opened_at: int) -> None:
    if lines > _MOST_LINES_IN_FIELD:
        raise DataError(
            f"{path} line {opened_at}: a quoted field begins here and does not end within"
            f" {_MOST_LINES_IN_FIELD} lines. Close the quote, or set data.quotes: false if quotes"
            " are ordinary characters in this file."
        )
