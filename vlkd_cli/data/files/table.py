"""A delimited text file with a header, read from the disk by row."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import CachedArrays
from vlkd_cli.data.files.cached_copies import cached_copy
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.remote import local_copy
from vlkd_cli.data.files.table_rows import find_rows, split_row
from vlkd_cli.data.files.texts import decode_text, read_at
from vlkd_cli.errors import DataError

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_LONGEST_HEADER_BYTES = 1 << 20


class Table:
    """Rows of a csv or tsv file. `index` must be set, from `find`, before a row is read.

    Args:
        path: the file, or a URL.
        sep: between columns; None: a comma in .csv files and a tab elsewhere.
        encoding: of the file.
        quotes: whether a quote at the beginning of a field opens a quoted one.

    Raises:
        DataError: the file cannot be read, or has no header.
    """

    index: CachedArrays

    def __init__(self, path: str, *, sep: str | None, encoding: str, quotes: bool) -> None:
        self.path, self.encoding, self.quotes = path, encoding, quotes
        self.sep = sep or ("," if path.lower().removesuffix(".gz").endswith(".csv") else "\t")
        if len(self.sep) != 1 or not self.sep.isascii():
            raise DataError(f"data.sep is {self.sep!r}; it is one ASCII character.")
        self.file, self.encoding = _in_plain_encoding(local_copy(path, "table"), encoding)
        self._handle: int | None = None
        self._parsed: tuple[int, list[str]] | None = None
        self.columns = self._header()

    def find(self, scratch: Path) -> dict[str, np.ndarray]:
        """Arrays of the index: `starts` of all rows, and the `digest` of the file's bytes.

        Args:
            scratch: folder for the offsets of large files.
        """
        rows = find_rows(self.file, delimiter=self.sep, quotes=self.quotes, scratch=scratch)
        if len(rows.starts) < 3:
            raise DataError(f"table {self.path} has a header and no rows.")
        return {"starts": rows.starts, "digest": np.frombuffer(rows.digest.encode(), np.uint8)}

    def version(self) -> str:
        """Changes whenever the file does; its bytes are not read."""
        status = self.file.stat()
        return digest_of(str(self.file.resolve()), status.st_size, status.st_mtime_ns)

    def __len__(self) -> int:
        return len(self.index["starts"]) - 2

    def fields(self, row: int) -> list[str]:
        """The cells of a row; 0 is the first below the header.

        Raises:
            Broken: it is not in the encoding, or has another number of columns than the header.
        """
        if self._parsed is None or self._parsed[0] != row:
            try:
                fields = self._split(int(row) + 1)
            except (ValueError, OSError) as error:
                raise Broken(f"{self.row_name(row)} cannot be read ({error})") from None
            if len(fields) != len(self.columns):
                raise Broken(
                    f"{self.row_name(row)} has {len(fields)} columns, the header"
                    f" {len(self.columns)}"
                )
            self._parsed = row, fields
        return self._parsed[1]

    def row_name(self, row: int) -> str:
        """What a message calls a row."""
        return f"{self.path} row {row + 1}"

    def column(self, name: str, key: str | None = None) -> int:
        """Position of a column.

        Args:
            key: of `data`, whose value the name is.

        Raises:
            DataError: there is none, or several.
        """
        where = "" if key is None else f" (data.{key})"
        if self.columns.count(name) > 1:
            raise DataError(
                f"table {self.path} has {self.columns.count(name)} columns '{name}'{where}."
                " Rename all but the right one."
            )
        if name in self.columns:
            return self.columns.index(name)
        if any("\r" in other for other in self.columns):
            raise DataError(
                f"table {self.path} ends its lines with carriage returns alone. Write it with line"
                " feeds."
            )
        if len(self.columns) == 1:
            for other, word in _SEPARATORS.items():
                if other != self.sep and other in self.columns[0]:
                    raise DataError(
                        f"table {self.path} has one column, '{self.columns[0]}', when split at each"
                        f" {_SEPARATORS.get(self.sep, self.sep)}; it looks separated by a {word}."
                        f" Set data.sep: {other!r}."
                    )
        raise DataError(
            f"table {self.path} has no column '{name}'"
            f"{where}.{did_you_mean(name, self.columns)} Its columns:"
            f" {', '.join(self.columns)}."
        )

    def _header(self) -> list[str]:
        with open(self.file, "rb") as file:
            first = file.readline(_LONGEST_HEADER_BYTES)
            while first and not first.strip():
                first = file.readline(_LONGEST_HEADER_BYTES)
        try:
            text = decode_text(first, self.encoding)
            header = split_row(text, delimiter=self.sep, quotes=self.quotes)
        except ValueError as error:
            raise DataError(
                f"table {self.path} line 1 cannot be read ({error}). Set data.encoding, or"
                " data.quotes: false."
            ) from None
        if not text.strip():
            raise DataError(f"table {self.path} is empty. Its first line names the columns.")
        return [name.strip() for name in header]

    def _split(self, line: int) -> list[str]:
        start, stop = self.index["starts"][line : line + 2].tolist()
        # Reading at a position leaves no state behind, so processes may share the handle.
        if self._handle is None:
            self._handle = os.open(self.file, os.O_RDONLY)
        text = decode_text(read_at(self._handle, start, stop - start), self.encoding)
        return split_row(text, delimiter=self.sep, quotes=self.quotes)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None, "_parsed": None}

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            os.close(self._handle)  # type: ignore[arg-type]


def _in_plain_encoding(file: Path, encoding: str) -> tuple[Path, str]:
    """The file and its encoding, or a UTF-8 copy where the encoding's bytes do not show line breaks
    (UTF-16 and the like)."""
    try:
        plain = "\n,\t".encode(encoding) in (b"\n,\t", codecs.BOM_UTF8 + b"\n,\t")
    except (LookupError, ValueError):
        raise DataError(f"data.encoding '{encoding}' is unknown.") from None
    if plain:
        return file, encoding
    status = file.stat()

    def write(copy: BinaryIO) -> None:
        with open(file, encoding=encoding, newline="") as source:
            while text := source.read(1 << 20):
                copy.write(text.encode("utf-8", "surrogatepass"))

    key = digest_of(str(file.resolve()), status.st_size, status.st_mtime_ns, encoding)
    try:
        return cached_copy(key, write), "utf-8"
    except UnicodeError as error:
        raise DataError(
            f"table {file} cannot be read as {encoding} ({error}). Set data.encoding."
        ) from None
