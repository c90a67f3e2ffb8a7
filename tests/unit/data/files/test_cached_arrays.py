from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from vlkd_cli.data.files.cached_arrays import cached_arrays, data_cache
from vlkd_cli.data.files.cached_copies import cached_copy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    umask = os.umask(0o022)
    yield tmp_path
    os.umask(umask)


def build(scratch: Path) -> dict[str, np.ndarray]:
    (scratch / "large.bin").write_bytes(b"0" * 100)
    return {"long": np.arange(5000), "short": np.array([1, 2])}


def never(scratch: Path) -> dict[str, np.ndarray]:
    raise AssertionError("built again")


def test_arrays_are_built_once_and_read_again(cache: Path) -> None:
    for make in (build, never):
        arrays = cached_arrays("key", make, store=True)
        assert arrays["long"][4999] == 4999 and arrays["short"].tolist() == [1, 2]
    (folder,) = (data_cache() / "index").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["long.npy", "short.npy", "sums.json"]


@pytest.mark.parametrize("name", ["long.npy", "short.npy", "sums.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut off", "zeros", "other bytes"])
def test_damaged_arrays_are_built_again(name: str, damage: str) -> None:
    cached_arrays("key", build, store=True)
    (folder,) = (data_cache() / "index").iterdir()
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "gone":
        half = len(content) // 2
        changed = {
            "empty": b"",
            "cut off": content[:half],
            "zeros": content[:half] + bytes(len(content) - half),
            "other bytes": content[:half] + b"\xff" + content[half + 1 :],
        }
        (folder / name).write_bytes(changed[damage])
    arrays = cached_arrays("key", build, store=True)
    assert arrays["long"].tolist() == list(range(5000)) and arrays["short"].tolist() == [1, 2]
    assert cached_arrays("key", never, store=True)["short"][0] == 1


def test_other_users_may_read_a_shared_cache() -> None:
    cached_arrays("key", build, store=True)
    (folder,) = (data_cache() / "index").iterdir()
    assert folder.stat().st_mode & stat.S_IROTH and folder.stat().st_mode & stat.S_IXOTH


def test_a_copy_that_was_cut_off_is_written_again() -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"0123456789")

    copy = cached_copy("key", write)
    assert copy.read_bytes() == b"0123456789" and copy.stat().st_mode & stat.S_IROTH
    copy.write_bytes(b"0123")
    assert cached_copy("key", write).read_bytes() == b"0123456789"

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("cut off")

    assert cached_copy("key", fail) == copy
    with pytest.raises(ValueError, match="cut off"):
        cached_copy("other", fail)
    assert list((data_cache() / "copies").iterdir()) == [copy]
