"""Parquet files, and the Arrow files that `datasets` saves: which a path names, and their rows in
the groups in which they lie."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.arrow_cells import holds_lists
from vlkd_cli.data.files.fingerprints import digest_files, digest_of
from vlkd_cli.data.files.remote import braced, expanded, is_url
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.data.images.files import is_data
from vlkd_cli.data.readers.reader import with_split
from vlkd_cli.errors import DataError

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_OPEN_FILES = 16
_FOOTER_BYTES = 1 << 16


def data_files(path: str | Sequence[str], split: str | None) -> list[str]:
    """The files that a recipe's `path` names: files, patterns, or folders as `datasets` and
    img2dataset write them.

    Args:
        split: replaces `{split}`, or chooses among the splits of a folder; by default the training
            one.

    Raises:
        DataError: there is none.
    """
    files: list[str] = []
    for each in [path] if isinstance(path, str) else path:
        address = expanded(each.replace("{split}", split or "train"))
        if os.path.isdir(address):
            files += _in_folder(Path(address), None if "{split}" in each else split)
        elif os.path.exists(address):
            files.append(expanded(with_split(each, split)))
        else:
            addresses = braced(expanded(with_split(each, split)))
            files += [file for name in addresses for file in _matching(name) or [name]]
    if not any(is_url(file) or os.path.isfile(file) for file in files):
        raise DataError(f"data.path {path}: no such file. Name .parquet files or a folder.")
    return files


def _matching(address: str) -> list[str]:
    if not is_url(address):
        return sorted(glob.glob(address))
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(address)
        if filesystem.isdir(inner):
            inner = f"{inner.rstrip('/')}/**/*.parquet"
        found = filesystem.glob(inner) if "*" in inner else [inner] * filesystem.exists(inner)
        return sorted(filesystem.unstrip_protocol(name) for name in found)
    except Exception as error:  # every fsspec protocol has exceptions of its own
        raise DataError(
            f"data.path {address} cannot be read ({type(error).__name__}: {error}). Correct the"
            " address, or install what its protocol needs."
        ) from None


def _in_folder(folder: Path, split: str | None) -> list[str]:
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = [str(name) for name in _listed(listing, "splits")]
        folder, split = folder / _of_split(names, split, folder), None
    if (folder / "state.json").is_file():
        if split is not None:
            raise DataError(f"data.split is '{split}', but {folder} is a data set without splits.")
        parts = _listed(folder / "state.json", "_data_files")
        names = [str(part.get("filename")) for part in parts if isinstance(part, dict)]
        return [str(folder / name) for name in names]
    every = sorted(folder.rglob("*"))
    by_suffix = (
        [file for file in every if file.suffix.lower() == suffix and not file.is_dir()]
        for suffix in (".parquet", ".arrow")
    )
    files = [
        str(file)
        for file in next(filter(None, by_suffix), [])
        if is_data(file.relative_to(folder).as_posix())
    ]
    if not files:
        raise DataError(f"data.path {folder}: it holds no .parquet or .arrow file.")
    by_split: dict[str, list[str]] = {}
    for file in files:
        relative = os.path.relpath(file, folder)
        words = re.split(r"[^a-z]+", relative.lower())
        own = next((k for k, names in _SPLITS.items() if set(names) & set(words)), "")
        by_split.setdefault(own, []).append(file)
    if set(by_split) == {""} and split is None:
        return files
    return by_split[_of_split(list(by_split), split, folder)]


def _listed(file: Path, key: str) -> list[object]:
    """A list in a json file that `datasets` wrote.

    Raises:
        DataError: it is not there.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError):
        content = None
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{file} is damaged: it has no '{key}'. Save the data set again.")
    return found


def _of_split(names: Sequence[str], split: str | None, folder: Path) -> str:
    wanted = _SPLITS.get(split or "train", (split,))
    found = next((name for name in names if name in wanted or name == split), None)
    if found is None and split is None and len(names) == 1:
        return names[0]
    if found is None:
        there = ", ".join(filter(None, names)) or "none"
        raise DataError(
            f"{folder} has no split '{split or 'train'}' (data.split). Splits there: {there}."
        )
    return found


class ArrowFiles:
    """Rows of several files as one table, read group by group: the row groups of Parquet files, the
    record batches of Arrow files. Survives pickling.

    Args:
        files: paths or URLs.

    Raises:
        DataError: none of them can be read.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = list(files)
        self._open: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self.schema: pa.Schema = self._first_schema()

    def type_of(self, column: str) -> pa.DataType:
        """What a column holds, in the first file where it holds anything."""
        kind = self.schema.field(column).type
        for number in range(len(self.files)):
            if not pa.types.is_null(kind):
                break
            with contextlib.suppress(DataError):
                schema = self._schema(number)
                kind = schema.field(column).type if schema.names.count(column) == 1 else kind
        return kind

    def find_groups(
        self, columns: Sequence[tuple[str, Callable[[pa.DataType], str]]]
    ) -> dict[str, np.ndarray]:
        """`groups` `[G, 3]` int64: file, number in it, rows; `bytes` `[G]` int64, uncompressed;
        `lost`: files that cannot be read.

        Args:
            columns: that every file needs, and why a type cannot be what is read of it, empty where
                it can.

        Raises:
            DataError: a file lacks one of the columns, or it holds something else.
        """
        rows, sizes, lost = [], [], []
        for number, file in enumerate(self.files):
            try:
                schema, parts = self._schema(number), self._sizes(number)
            except DataError:
                lost.append(number)
                continue
            for name, problem_of in columns:
                self._require_alike(file, schema, name, problem_of)
            for group, (count, size) in enumerate(parts):
                if count:
                    rows.append((number, group, count))
                    sizes.append(size)
        return {
            "groups": np.array(rows, dtype=np.int64).reshape(-1, 3),
            "bytes": np.array(sizes, dtype=np.int64),
            "lost": np.array(lost, dtype=np.int64),
        }

    def _require_alike(
        self, file: str, schema: pa.Schema, name: str, problem_of: Callable[[pa.DataType], str]
    ) -> None:
        if schema.names.count(name) != 1:
            raise DataError(f"{file} has no column '{name}', as others have.")
        own, other = schema.field(name).type, self.type_of(name)
        if pa.types.is_null(own):
            return
        if problem := problem_of(own):
            raise DataError(f"{file}: column '{name}' {problem}.")
        if holds_lists(own) != holds_lists(other):
            raise DataError(f"{file}: column '{name}' holds {own}, and {other} in other files.")

    def read(self, file: int, group: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of a group.

        Raises:
            Broken: they cannot be read.
        """
        try:
            opened = self._opened(file)
            if isinstance(opened, pq.ParquetFile):
                return opened.read_row_group(group, columns=list(columns), use_threads=False)
            table = pa.Table.from_batches([opened[group]])
            return table.select([name for name in columns if name in table.schema.names])
        except (pa.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise Broken(f"row group {group} of its file cannot be read ({reason})") from None

    def version(self) -> str:
        """Changes whenever a file does; little of it is read."""
        states = []
        for file in self.files:
            if is_url(file):
                states.append(repr(_info(file)))
            elif os.path.isfile(file):
                status = os.stat(file)
                states.append(f"{os.path.realpath(file)} {status.st_size} {status.st_mtime_ns}")
        return digest_of(states)

    def digest(self) -> str:
        """Of the content, from the beginning, middle and end of the files; equal for equal
        copies."""
        local = [file for file in self.files if not is_url(file)]
        remote = [_end(file) for file in self.files if is_url(file)]
        return digest_of(digest_files(local), [_end(file) for file in local], remote)

    def _first_schema(self) -> pa.Schema:
        problem: DataError | None = None
        for number in range(len(self.files)):
            try:
                return self._schema(number)
            except DataError as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def _schema(self, file: int) -> pa.Schema:
        opened = self._opened(file)
        if isinstance(opened, pq.ParquetFile):
            return opened.schema_arrow
        return opened[0].schema if opened else pa.schema([])

    def _sizes(self, file: int) -> list[tuple[int, int]]:
        """Rows and uncompressed bytes of each group."""
        opened = self._opened(file)
        if not isinstance(opened, pq.ParquetFile):
            return [(batch.num_rows, batch.nbytes) for batch in opened]
        parts = [opened.metadata.row_group(k) for k in range(opened.num_row_groups)]
        return [(part.num_rows, part.total_byte_size) for part in parts]

    def _opened(self, file: int) -> Any:
        """A Parquet file, or the batches of an Arrow file, mapped into memory."""
        # A handle that processes share has one position for all of them.
        key = (os.getpid(), file)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        while len(self._open) >= _OPEN_FILES:
            self._open.popitem(last=False)
        path = self.files[file]
        try:
            self._open[key] = _open(path)
        except DataError:
            raise
        except Exception as error:  # pyarrow's and those of every fsspec protocol
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}: {reason}). Fetch it again, or take"
                " it out of data.path."
            ) from None
        return self._open[key]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": OrderedDict()}


def _open(path: str) -> Any:
    if path.lower().endswith(".arrow"):
        with pa.memory_map(path) as source:
            try:
                return pa.ipc.open_stream(source).read_all().to_batches()
            except pa.ArrowInvalid:
                source.seek(0)
                return pa.ipc.open_file(source).read_all().to_batches()
    if not is_url(path):
        return pq.ParquetFile(path)
    import fsspec

    return pq.ParquetFile(fsspec.open(path, "rb").open())


def _info(url: str) -> list[tuple[str, str]]:
    """What distinguishes versions of a file; nothing where it is missing."""
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
        return sorted((key, str(value)) for key, value in filesystem.info(inner).items())
    except Exception:  # every fsspec protocol has exceptions of its own
        return []


def _end(file: str) -> bytes:
    """The end of a file, which in Parquet holds the sizes of all its parts; empty where it is
    missing."""
    if is_url(file):
        import fsspec

        try:
            filesystem, inner = fsspec.core.url_to_fs(file)
            found: bytes = filesystem.tail(inner, _FOOTER_BYTES)
            return found
        except Exception:  # every fsspec protocol has exceptions of its own
            return b""
    if not os.path.isfile(file):
        return b""
    with open(file, "rb") as opened:
        opened.seek(0, os.SEEK_END)
        opened.seek(max(0, opened.tell() - _FOOTER_BYTES))
        return opened.read()
