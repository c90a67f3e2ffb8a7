"""Array files that may be damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli.numerics.npy import load_npy


def test_a_whole_file_is_read_in_memory_and_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert load_npy(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(load_npy(tmp_path / "a.npy", mmap_mode="r"), np.memmap)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:40],
        lambda whole: whole.replace(b"{'descr'", b"{('descr'"),
        lambda whole: whole.replace(b"<i8", b"|O8"),
        lambda whole: b"PK\x03\x04" + whole,
        lambda whole: b"\x93NUMPY\x09\x09" + whole[8:],
    ],
)
def test_a_damaged_file_is_a_value_error(damage, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    path = tmp_path / "b.npy"
    path.write_bytes(damage((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(ValueError, match="not an array file"):
        load_npy(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_npy(tmp_path / "no.npy")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    with pytest.raises(OSError, match="is a folder, pipe, socket or device"):
        load_npy(tmp_path / "a.npy", mmap_mode="r")
