"""Delimited text files (csv, tsv) with a column of image paths and one or more of captions."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import KEEP_ABOVE_BYTES, KeptArrays, data_cache, kept_arrays
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.remote import fetch_bytes, is_url, joined, local_copy, parent_of
from vlkd_cli.data.files.table_groups import group_rows
from vlkd_cli.data.files.table_rows import find_rows, split_row
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.subset import checked_part, part_of
from vlkd_cli.errors import DataError

_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_FIRST_IMAGES = 3


class CSV(Reader):
    """Rows of a csv or tsv file. Rows are read from the disk when they are asked for, so a file of
    any length takes no memory.

    Args:
        path: the file, or a URL that fsspec reads (s3://, https://, ...); `{split}` in it is
            replaced by `split`.
        image: column of the image's path or URL.
        caption: column of the caption, or several columns.
        sep: what separates the columns; by default a comma in .csv files and a tab elsewhere.
        image_root: folder or URL that image paths are relative to; by default the one that the
            table lies in.
        encoding: of the table.
        caption_separator: mark between several captions in one cell.
        group: rows that name the same image are one sample with several captions; false: each row
            is a sample.
        label: column of the class, as a number or a name; names are numbered in alphabetical order.
        quotes: whether a quote at the beginning of a field opens a quoted one.
        split: which split, where `path` has a place for it.
        part: take only this part of the images, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    def __init__(
        self,
        *,
        path: str,
        image: str = "filepath",
        caption: str | list[str] = "title",
        sep: str | None = None,
        image_root: str | None = None,
        encoding: str = "utf-8",
        caption_separator: str | None = None,
        group: bool = True,
        label: str | None = None,
        quotes: bool = True,
        split: str | None = None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if split is not None and "{split}" not in path:
            raise DataError(
                f"data.split is '{split}', but data.path ({path}) has no '{{split}}' to put it in."
            )
        path = path.replace("{split}", split or "train")
        self.path, self.split, self.encoding, self.quotes, self.caption_separator = (
            path,
            split,
            encoding,
            quotes,
            caption_separator,
        )
        self.sep = sep or ("," if path.lower().removesuffix(".gz").endswith(".csv") else "\t")
        if len(self.sep) != 1 or not self.sep.isascii():
            raise DataError(f"data.sep is {self.sep!r}; it is one ASCII character.")
        self._file = _in_plain_encoding(local_copy(path, "table"), encoding)
        if self._file.suffix == ".utf8":
            self.encoding = "utf-8"
        self._handle: int | None = None
        self._parsed: tuple[int, list[str]] | None = None
        header = self._header()
        captions = [caption] if isinstance(caption, str) else list(caption)
        self._image = self._column(header, image, "image")
        self._captions = [self._column(header, name, "caption") for name in captions]
        self._label = None if label is None else self._column(header, label, "label")
        self._settings = (
            image,
            captions,
            self.sep,
            encoding,
            caption_separator,
            group,
            label,
            quotes,
        )
        self._index = self._indexed(group)
        self.image_root = parent_of(path) if image_root is None else image_root
        if "class_names" in self._index:
            self.classes = bytes(self._index["class_names"]).decode().split("\0")
        self._check_images(image_root)
        self.part = checked_part(part)

    def opened(self) -> Reader:
        return part_of(self, self.part)

    def __len__(self) -> int:
        return (
            len(self._index["caption_starts"]) - 1
            if "caption_starts" in self._index
            else len(self._index["starts"]) - 2
        )

    def image(self, index: int) -> bytes | str | None:
        place = self._place(index)
        return fetch_bytes(place) if is_url(place) else place

    def captions(self, index: int) -> Sequence[str]:
        cells = [
            self._fields(row)[column] for row in self._rows(index) for column in self._captions
        ]
        if self.caption_separator is not None:
            cells = split_captions(cells, self.caption_separator)
        elif len(self._captions) > 1:
            cells = [cell for cell in cells if cell.strip()]
        return cells

    def label(self, index: int) -> int:
        return int(self._index["labels"][index]) if "labels" in self._index else -1

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return (
            self._index["labels"][indices]
            if "labels" in self._index
            else np.full(len(indices), -1, dtype=np.int64)
        )

    def name(self, index: int) -> str:
        try:
            return self._place(index)
        except Broken:
            return f"{self.path} row {int(self._rows(index)[0]) + 1}"

    def caption_start(self, index: int) -> int:
        return (
            int(self._index["caption_starts"][index]) if "caption_starts" in self._index else index
        )

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        return (
            self._index["caption_starts"][indices] if "caption_starts" in self._index else indices
        )

    def fingerprint(self) -> str:
        places = (self.name(index) for index in probed(len(self)))
        files = digest_files(place for place in places if not is_url(place))
        return digest_of("csv", self._settings, bytes(self._index["digest"]), files)

    def _place(self, index: int) -> str:
        value = self._fields(int(self._rows(index)[0]))[self._image].strip()
        if not value:
            raise Broken("the row names no image")
        return joined(self.image_root, value)

    def _rows(self, index: int) -> Sequence[int] | np.ndarray:
        """Rows of the table (0: the first below the header) that make up a sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        if "group_starts" not in self._index:
            return (index,)
        first, last = self._index["group_starts"][index : index + 2]
        return self._index["grouped_rows"][first:last]

    def _fields(self, row: int) -> list[str]:
        if self._parsed is None or self._parsed[0] != row:
            try:
                fields = self._split(int(row) + 1)
            except (ValueError, UnicodeDecodeError) as error:
                raise Broken(f"{self.path} row {row + 1} cannot be read ({error})") from None
            if len(fields) != self._num_columns:
                raise Broken(
                    f"{self.path} row {row + 1} has {len(fields)} columns, the header"
                    f" {self._num_columns}"
                )
            self._parsed = row, fields
        return self._parsed[1]

    def _split(self, line: int) -> list[str]:
        start, stop = self._index["starts"][line : line + 2].tolist()
        return split_row(
            self._bytes(start, stop - start).decode(self.encoding),
            delimiter=self.sep,
            quotes=self.quotes,
        )

    def _bytes(self, start: int, length: int) -> bytes:
        # Reading at a position leaves no state behind, so processes may share the handle.
        if self._handle is None:
            self._handle = os.open(self._file, os.O_RDONLY)
        return os.pread(self._handle, length, start)

    def _header(self) -> list[str]:
        with open(self._file, "rb") as file:
            first = file.readline(1 << 20)
            while first and not first.strip():
                first = file.readline(1 << 20)
        if not first.strip():
            raise DataError(f"table {self.path} is empty. Its first line names the columns.")
        try:
            header = split_row(
                first.removeprefix(codecs.BOM_UTF8).decode(self.encoding),
                delimiter=self.sep,
                quotes=self.quotes,
            )
        except ValueError as error:
            raise DataError(
                f"table {self.path} line 1 cannot be read as {self.encoding} ({error}). Set"
                " data.encoding."
            ) from None
        self._num_columns = len(header)
        return [name.strip() for name in header]

    def _column(self, header: list[str], name: str, key: str) -> int:
        if header.count(name) > 1:
            raise DataError(
                f"table {self.path} has {header.count(name)} columns '{name}' (data.{key}). Rename"
                " all but the right one."
            )
        if name in header:
            return header.index(name)
        if any("\r" in other for other in header):
            raise DataError(
                f"table {self.path} ends its lines with carriage returns alone. Write it with line"
                " feeds."
            )
        if len(header) == 1:
            for other, word in _SEPARATORS.items():
                if other != self.sep and other in header[0]:
                    raise DataError(
                        f"table {self.path} has one column, '{header[0]}', when split at each"
                        f" {_SEPARATORS.get(self.sep, self.sep)}; it looks separated by a {word}."
                        f" Set data.sep: {other!r}."
                    )
        raise DataError(
            f"table {self.path} has no column '{name}' (data.{key}).{did_you_mean(name, header)}"
            f" Its columns: {', '.join(header)}."
        )

    def _indexed(self, group: bool) -> KeptArrays:
        status = self._file.stat()
        # What a kept index was made from; its content's digest is known only after reading all of
        # it.
        key = digest_of(
            "rows-1", str(self._file.resolve()), status.st_size, status.st_mtime_ns, self._settings
        )

        def build(scratch: Path) -> dict[str, np.ndarray]:
            rows = find_rows(self._file, delimiter=self.sep, quotes=self.quotes, scratch=scratch)
            arrays = {
                "starts": rows.starts,
                "digest": np.frombuffer(rows.digest.encode(), dtype=np.uint8),
            }
            if len(rows.starts) < 3:
                raise DataError(f"table {self.path} has a header and no rows.")
            self._index = KeptArrays(arrays)
            return arrays | group_rows(
                self,
                group=group,
                several=len(self._captions) > 1 or self.caption_separator is not None,
            )

        return kept_arrays(key, build, keep=status.st_size > KEEP_ABOVE_BYTES)

    def _check_images(self, image_root: str | None) -> None:
        """A wrong image root shows in the first rows; later gaps are the loader's to count."""
        if image_root is not None and not is_url(image_root) and not Path(image_root).is_dir():
            raise DataError(f"data.image_root {image_root}: no such folder.")
        places, broken = [], None
        for index in range(min(_FIRST_IMAGES, len(self))):
            try:
                places.append(self._place(index))
            except Broken as error:
                broken = error
        if not places:
            raise DataError(
                f"{broken}. Check data.sep, data.quotes and data.encoding, or repair the row."
            )
        if not any(is_url(place) or os.path.isfile(place) for place in places):
            raise DataError(
                f"table {self.path}: its first images are not there, e.g. {places[0]}. Set"
                " data.image_root to their folder."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_parsed": None}

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            os.close(self._handle)  # type: ignore[arg-type]


def split_captions(cells: Sequence[str], separator: str) -> list[str]:
    """The captions in cells that hold several; empty ones are none."""
    return [
        caption.strip() for cell in cells for caption in cell.split(separator) if caption.strip()
    ]


def _in_plain_encoding(file: Path, encoding: str) -> Path:
    """The file itself, or a UTF-8 copy where the encoding's bytes do not show line breaks (UTF-16
    and the like)."""
    try:
        plain = "\n,\t".encode(encoding) in (b"\n,\t", codecs.BOM_UTF8 + b"\n,\t")
    except LookupError:
        raise DataError(f"data.encoding '{encoding}' is unknown.") from None
    if plain:
        return file
    status = file.stat()
    copy = (
        data_cache()
        / "copies"
        / (digest_of(str(file.resolve()), status.st_size, status.st_mtime_ns, encoding) + ".utf8")
    )
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        making = copy.with_name(f"{copy.name}.{os.getpid()}")
        try:
            with (
                open(file, encoding=encoding, newline="") as source,
                open(making, "w", encoding="utf-8", newline="") as target,
            ):
                while text := source.read(1 << 20):
                    target.write(text)
        except UnicodeError as error:
            making.unlink()
            raise DataError(
                f"table {file} cannot be read as {encoding} ({error}). Set data.encoding."
            ) from None
        os.replace(making, copy)
    return copy
