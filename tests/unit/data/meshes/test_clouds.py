"""Clouds are sampled once; what is damaged or has changed is sampled again."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from tests.support.meshes import box, off_text
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.meshes import clouds as module
from vlkd_cli.data.meshes.clouds import Clouds
from vlkd_cli.data.meshes.points import cloud_of_file


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{n}.off" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_text(off_text(box(1 + n, 1, 1)))
    return [str(path) for path in paths]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that were sampled, in order."""
    found: list[str] = []

    def counted(path: str, points: int) -> np.ndarray:
        found.append(path)
        return cloud_of_file(path, points)

    monkeypatch.setattr(module, "cloud_of_file", counted)
    return found


def test_a_mesh_is_opened_once_in_all_runs_and_processes(files, opened):
    first = Clouds(files, 32)
    expected = [first[n] for n in range(3)]
    again = pickle.loads(pickle.dumps(first))
    for other in (first, again, Clouds(files, 32)):
        assert all(np.array_equal(other[n], expected[n]) for n in range(3))
    assert opened == files
    assert Clouds(files, 16)[0].shape == (16, 6)


def test_a_damaged_row_and_a_changed_file_are_sampled_again(files, opened):
    clouds = Clouds(files, 32)
    expected = clouds[1]
    with open(clouds.folder / "clouds.npy", "r+b") as file:
        file.seek(-32 * 6 * 4 * 2 + 40, 2)
        file.write(b"damage")
    assert np.array_equal(Clouds(files, 32)[1], expected)
    assert opened == [files[1]] * 2
    with open(files[1], "a") as file:
        file.write("# changed\n")
    assert not np.array_equal(Clouds(files, 32)[1], expected)


def test_a_file_that_cannot_be_read_is_broken_each_time(files):
    clouds = Clouds([*files, "", "missing.off"], 32)
    for _ in range(2):
        with pytest.raises(Broken, match="names no mesh"):
            clouds[3]
        with pytest.raises(Broken, match="No such file"):
            clouds[4]
