"""Captions with labels from a table, without any image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vlkd_cli.data.files.class_numbers import by_size
from vlkd_cli.data.files.table_rows import rows_of
from vlkd_cli.data.files.texts import clean_text, read_text
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError

CAPTION_COLUMNS = ("caption", "title", "text")
LABEL_COLUMNS = ("label", "class", "target")


class CaptionTable(Reader):
    """A .csv or .tsv table with a header, a caption column (caption, title or text) and a label
    column (label, class or target).

    Args:
        path: the table.
        classes: class names in label order; by default the labels that occur, numbers by size,
            words by alphabet.

    Raises:
        DataError: unreadable, a column is missing, a row is short, or a label is none of the
            classes.
    """

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        self.path = path
        try:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            header, *rows = list(rows_of(read_text(path), delimiter=delimiter)) or [[]]
        except ValueError as error:
            raise DataError(f"{path}: cannot be read: {error}.") from None
        caption, label = (
            _column(path, header, CAPTION_COLUMNS),
            _column(path, header, LABEL_COLUMNS),
        )
        for row_number, row in enumerate(rows, start=1):
            if len(row) < len(header):
                raise DataError(
                    f"{path}: row {row_number} after the header has {len(row)} fields; expected"
                    f" {len(header)}."
                )
        if not rows:
            raise DataError(f"{path}: holds no captions.")
        self._captions = [clean_text(row[caption]) for row in rows]
        names = [row[label].strip() for row in rows]
        self.classes = list(
            classes
            or sorted(
                set(names),
                key=lambda name: (not name.isdecimal(), name.isdecimal() and by_size(name), name),
            )
        )
        numbers = {name: number for number, name in enumerate(self.classes)}
        strange = sorted(set(names) - set(numbers))
        if strange:
            raise DataError(
                f"{path}: label '{strange[0]}' does not occur in the training captions."
            )
        self._labels = [numbers[name] for name in names]

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, index: int) -> Sequence[str]:
        return (self._captions[index],)

    def label(self, index: int) -> int:
        return self._labels[index]

    def name(self, index: int) -> str:
        return f"{self.path}, caption {index}"

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self._captions, self._labels)).encode()).hexdigest()

    def caption_start(self, index: int) -> int:
        return index

    @property
    def num_captions(self) -> int:
        return len(self)


def _column(path: Path, header: Sequence[str], names: Sequence[str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise DataError(
        f"{path}:1: no column is named {' or '.join(names)}; there are"
        f" {', '.join(header) or 'none'}."
    )
