"""Tables of cached features as files: listed, exported, imported and pruned."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from vlkd_cli.errors import DataError
from vlkd_cli.features.about import ABOUT, About, read_about, remember
from vlkd_cli.features.cached_tables import (
    export_tables,
    import_tables,
    list_tables,
    prune_tables,
)
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.recipe.types import TableType

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)
ABOUT_IT = About("teacher", "d" * 64, "backbone", "main", "f" * 64, draw=1, seed=0)


def table(
    cache: Path, rows: list[int], name: str = "ab" * 16, dtype: TableType = "float32"
) -> FeatureStore:
    store = FeatureStore(cache / "train_features" / name, 4, 3, dtype=dtype)
    store.write(np.array(rows, dtype=np.int64), VALUES[rows])
    assert store.folder is not None
    remember(store.folder, ABOUT_IT)
    return store


def test_a_table_is_listed_with_what_it_holds(tmp_path: Path) -> None:
    table(tmp_path, [0, 2])
    (one,) = list_tables(tmp_path)
    assert (one.name, one.rows, one.width, one.stored) == ("ab" * 6, 4, 3, 0.5)
    assert one.about == ABOUT_IT
    assert one.size_bytes > 0 and abs(one.used - time.time()) < 60


def test_a_note_that_cannot_be_written_or_read_costs_the_table_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = table(tmp_path, [0]).folder
    assert folder is not None
    (folder / ABOUT).unlink()
    (folder / ABOUT).mkdir()
    remember(folder, ABOUT_IT)
    (one,) = list_tables(tmp_path)
    assert (one.about, one.rows) == (None, 4)
    assert "is listed without its tower" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [ABOUT, "checks.npy", "features.npy"]


def test_an_exported_table_is_read_elsewhere(tmp_path: Path) -> None:
    table(tmp_path / "here", [0, 1, 2, 3])
    export_tables(tmp_path / "here", tmp_path / "t.tar")
    assert import_tables(tmp_path / "there", tmp_path / "t.tar") == [("ab" * 6, 4)]
    store = FeatureStore(tmp_path / "there" / "train_features" / ("ab" * 16), 4, 3)
    assert store.done.all() and np.array_equal(store.table(), VALUES)
    assert read_about(tmp_path / "there" / "train_features" / ("ab" * 16)) == ABOUT_IT


@pytest.mark.parametrize("dtype", get_args(TableType))
def test_an_import_adds_the_rows_that_are_missing(dtype: TableType, tmp_path: Path) -> None:
    table(tmp_path / "here", [0, 1], dtype=dtype)
    there = table(tmp_path / "there", [1, 2], dtype=dtype)
    export_tables(tmp_path / "here", tmp_path / "t.tar", ["abab"])
    assert import_tables(tmp_path / "there", tmp_path / "t.tar") == [("ab" * 6, 1)]
    assert there.folder is not None
    joined = FeatureStore(there.folder, 4, 3, dtype=dtype)
    assert joined.done.tolist() == [1, 1, 1, 0]
    assert np.array_equal(joined.table()[:3], VALUES[:3])


def test_a_table_of_another_shape_does_not_replace_the_one_that_is_here(tmp_path: Path) -> None:
    there = table(tmp_path / "there", [0, 1])
    other = FeatureStore(tmp_path / "here" / "train_features" / ("ab" * 16), 5, 2)
    other.write(np.arange(5), np.ones((5, 2), np.float32))
    export_tables(tmp_path / "here", tmp_path / "t.tar")
    with pytest.raises(DataError, match=r"has \(4, 3, 'float32'\) rows, columns and type here"):
        import_tables(tmp_path / "there", tmp_path / "t.tar")
    assert there.folder is not None
    assert np.array_equal(FeatureStore(there.folder, 4, 3).table()[:2], VALUES[:2])


@pytest.mark.parametrize("fault", ["bit", "cut", "text", "path", "manifest"])
def test_a_damaged_or_foreign_file_changes_nothing(fault: str, tmp_path: Path) -> None:
    table(tmp_path / "here", [0, 1, 2, 3])
    file = tmp_path / "t.tar"
    export_tables(tmp_path / "here", file)
    content = bytearray(file.read_bytes())
    if fault == "bit":
        content[content.index(VALUES[1].tobytes())] ^= 1
    if fault == "cut":
        del content[len(content) // 4 :]
    if fault == "text":
        content[:] = b"no archive"
    file.write_bytes(content)
    if fault in ("path", "manifest"):
        with tarfile.open(file, "w") as archive:
            names = ["vlkd-cache.json"] if fault == "path" else []
            for name in [*names, "../escaped.npy"]:
                member = tarfile.TarInfo(name)
                member.size = 2
                archive.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(DataError) as caught:
        import_tables(tmp_path / "there", file)
    assert len(str(caught.value).splitlines()) == 1
    assert list_tables(tmp_path / "there") == []
    assert not list(tmp_path.glob("escaped*"))


def test_what_was_not_used_for_days_is_removed(tmp_path: Path) -> None:
    old, new = table(tmp_path, [0], "0a" * 16), table(tmp_path, [0], "0b" * 16)
    assert old.folder is not None and new.folder is not None
    then = time.time() - 10 * 86_400
    os.utime(old.folder / ABOUT, (then, then))
    assert [one.folder for one in prune_tables(tmp_path, 9)] == [old.folder]
    assert [one.folder for one in list_tables(tmp_path)] == [new.folder]


def test_an_unknown_table_and_an_existing_file_are_one_line(tmp_path: Path) -> None:
    table(tmp_path, [0])
    with pytest.raises(DataError, match=r"no table 'x' in .*See `vlkd cache list`"):
        export_tables(tmp_path, tmp_path / "t.tar", ["x"])
    (tmp_path / "t.tar").touch()
    with pytest.raises(DataError, match="exists already"):
        export_tables(tmp_path, tmp_path / "t.tar")
