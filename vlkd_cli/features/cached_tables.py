"""The tables of cached features as files: listed, moved to another machine, joined with what is
there, and removed. Nothing here runs or loads a tower."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.cache_folder import make_folder
from vlkd_cli.data.files.texts import parse_json
from vlkd_cli.errors import DataError
from vlkd_cli.features.about import ABOUT, FOLDERS, About, read_about
from vlkd_cli.features.broken_rows import BROKEN, note_broken, noted_broken
from vlkd_cli.features.store import CHECKS, FEATURES, FeatureStore, is_done
from vlkd_cli.numerics.npy import load_npy
from vlkd_cli.recipe.types import TableType
from vlkd_cli.whole_file import whole_file

MANIFEST = "vlkd-cache.json"
_FILES = (FEATURES, CHECKS, ABOUT, BROKEN)
_MEMBER = re.compile(rf"({'|'.join(FOLDERS)})/([0-9a-f-]+)/({'|'.join(map(re.escape, _FILES))})")
_SHORT = 12
_BLOCK = 1 << 20
_DAY_SECONDS = 86_400


class CachedTable(NamedTuple):
    """One table on disk.

    Args:
        folder: of its files.
        about: what it holds, where that is known.
        rows, width: of the table.
        stored: fraction of the rows that are finished.
        size_bytes: that its files take on the disk.
        used: when a command last opened it, in seconds since 1970.
    """

    folder: Path
    about: About | None
    rows: int
    width: int
    stored: float
    size_bytes: int
    used: float

    @property
    def name(self) -> str:
        """What commands call it: the beginning of its key."""
        return self.folder.name[:_SHORT]


def list_tables(cache: Path) -> list[CachedTable]:
    """Every table of a cache folder, the last used first."""
    found = [
        table
        for kind in FOLDERS
        for path in sorted((cache / kind).glob(f"*/{FEATURES}"))
        for table in [_described(path.parent)]
        if table is not None
    ]
    return sorted(found, key=lambda table: -table.used)


def export_tables(cache: Path, target: Path, names: Sequence[str] = ()) -> list[CachedTable]:
    """Write tables into a tar file with the digests of their files.

    Args:
        names: beginnings of their keys; empty: all.

    Raises:
        DataError: the file exists, or no table has such a name.
    """
    if target.exists():
        raise DataError(f"{target} exists already. Remove it, or name another file.")
    chosen = _chosen(list_tables(cache), names, cache)
    files = [
        path for table in chosen for path in map(table.folder.joinpath, _FILES) if path.is_file()
    ]
    digests = {path.relative_to(cache).as_posix(): _digest(path) for path in files}
    try:
        with whole_file(target) as partial, tarfile.open(partial, "w") as archive:
            text = json.dumps(digests, indent=1).encode()
            member = tarfile.TarInfo(MANIFEST)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
            for path in files:
                archive.add(path, path.relative_to(cache).as_posix(), recursive=False)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}.") from error
    return chosen


def import_tables(cache: Path, source: Path) -> list[tuple[str, int]]:
    """Take in the tables of a file of `export_tables`; rows that are here stay as they are.

    Returns:
        Each table's name and how many rows were new.

    Raises:
        DataError: the file is not such an export, is cut off, or a digest does not agree; the cache
            is then as it was.
    """
    incoming = cache / f".import-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]}"
    shutil.rmtree(incoming, ignore_errors=True)
    try:
        folders = _unpacked(source, incoming)
        return [_taken_in(folder, cache / folder.relative_to(incoming)) for folder in folders]
    except (tarfile.TarError, EOFError) as error:
        raise _not_an_export(source, "it is cut off or not a tar file") from error
    except OSError as error:
        raise DataError(f"cannot import {source}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def prune_tables(cache: Path, unused_for_days: float) -> list[CachedTable]:
    """Remove the tables that no command has opened for so many days; those that were removed."""
    latest = time.time() - unused_for_days * _DAY_SECONDS
    removed = [table for table in list_tables(cache) if table.used <= latest]
    for table in removed:
        try:
            shutil.rmtree(table.folder)
        except OSError as error:
            raise DataError(f"cannot remove {table.folder}: {error.strerror or error}.") from error
    return removed


def _described(folder: Path) -> CachedTable | None:
    shape = _shape_of(folder)
    if shape is None:
        console.warn(f"{folder} holds no table that can be read; it is left out.")
        return None
    rows, width, _ = shape
    checks = np.array(load_npy(folder / CHECKS, mmap_mode="r"))
    status = [path.stat() for name in _FILES if (path := folder / name).is_file()]
    noted = folder / ABOUT
    used = noted.stat().st_mtime if noted.is_file() else max(one.st_mtime for one in status)
    stored = float(is_done(checks).mean()) if rows else 1.0
    size = sum(one.st_blocks * 512 for one in status)
    return CachedTable(folder, read_about(folder), rows, width, stored, size, used)


def _shape_of(folder: Path) -> tuple[int, int, TableType] | None:
    """Rows, width and type of a table; None where there is none that can be read."""
    try:
        features = load_npy(folder / FEATURES, mmap_mode="r")
        checks = load_npy(folder / CHECKS, mmap_mode="r")
        rows, width = features.shape
    except (OSError, ValueError):
        return None
    dtypes: dict[str, TableType] = {"uint16": "bfloat16", "float32": "float32"}
    dtype = dtypes.get(features.dtype.name)
    fits = dtype is not None and (checks.shape, checks.dtype) == ((rows,), np.uint64)
    return (rows, width, dtype) if dtype is not None and fits else None


def _chosen(tables: list[CachedTable], names: Sequence[str], cache: Path) -> list[CachedTable]:
    found = [
        table
        for table in tables
        if not names or any(table.folder.name.startswith(name) for name in names)
    ]
    for name in names:
        if not any(table.folder.name.startswith(name) for table in found):
            raise DataError(f"no table '{name}' in {cache}. See `vlkd cache list`.")
    if not found:
        raise DataError(f"{cache} holds no table of features. Nothing to export.")
    return found


def _unpacked(source: Path, incoming: Path) -> list[Path]:
    """The folders of an archive's tables, every file compared with its digest."""
    with tarfile.open(source, "r:") as archive:
        first = archive.next()
        text = None if first is None or first.name != MANIFEST else archive.extractfile(first)
        if text is None:
            raise _not_an_export(source, f"it does not begin with {MANIFEST}")
        try:
            digests: dict[str, str] = dict(parse_json(text.read()))
        except (ValueError, TypeError) as error:
            raise _not_an_export(source, f"its {MANIFEST} is damaged") from error
        while (member := archive.next()) is not None:
            content = archive.extractfile(member)
            # The name decides where a file goes, so only names that vlkd itself writes are taken.
            if content is None or not _MEMBER.fullmatch(member.name):
                raise _not_an_export(source, f"it holds '{member.name}'")
            path = incoming / member.name
            make_folder(path.parent)
            if _copied(content, path) != digests.pop(member.name, None):
                raise DataError(
                    f"{source}: '{member.name}' does not agree with its digest. Copy the file"
                    " again."
                )
    if digests:
        raise _not_an_export(source, f"'{next(iter(digests))}' is missing")
    return sorted({path.parent for path in incoming.glob(f"*/*/{FEATURES}")})


def _taken_in(folder: Path, target: Path) -> tuple[str, int]:
    name, shape = target.name[:_SHORT], _shape_of(folder)
    if shape is None:
        raise DataError(f"the table {name} of the file cannot be read. Export it again.")
    rows, width, dtype = shape
    new = FeatureStore(folder, rows, width, dtype=dtype)
    if not (target / FEATURES).exists():
        make_folder(target.parent)
        folder.rename(target)
        return name, int(new.done.sum())
    # A table of another shape would be made again, and its rows would be lost.
    if (found := _shape_of(target)) not in (None, shape):
        raise DataError(
            f"the table {name} has {found} rows, columns and type here, and {shape} in the file,"
            " which is damaged. Export it again."
        )
    here = FeatureStore(target, rows, width, dtype=dtype)
    assert here.folder is not None
    missing = np.flatnonzero((new.done != 0) & (here.done == 0))
    here.write(missing, new.table()[missing], new.broken[missing])
    noted = noted_broken(folder)
    note_broken(here.folder, {row: noted[row] for row in missing.tolist() if row in noted})
    return name, len(missing)


def _not_an_export(source: Path, reason: str) -> DataError:
    return DataError(f"{source} is not a file of `vlkd cache export`: {reason}. Export it again.")


def _copied(content: IO[bytes], path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for block in _blocks(content):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block
