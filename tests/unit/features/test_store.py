"""Tables of cached features: what is written is what is read, or it is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd_cli.cache_folder import make_folder
from vlkd_cli.features.store import CHECKS, FEATURES, FeatureStore

ROWS, WIDTH = 5000, 7


def values(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32)


def filled(folder: Path) -> FeatureStore:
    store = FeatureStore(folder, ROWS, WIDTH)
    order = np.random.default_rng(1).permutation(ROWS)
    for rows in np.array_split(order, 7):
        store.write(rows, values()[rows], rows % 100 == 0)
    return store


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    filled(tmp_path / "table")
    again = FeatureStore(tmp_path / "table", ROWS, WIDTH)
    assert again.done.all()
    assert np.flatnonzero(again.broken).tolist() == list(range(0, ROWS, 100))
    np.testing.assert_array_equal(again.table(), values())


def test_a_table_of_bfloat16_takes_half_the_space_and_holds_rounded_values(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "table", 3, WIDTH, dtype="bfloat16")
    store.write(np.arange(3), values()[:3])
    again = FeatureStore(tmp_path / "table", 3, WIDTH, dtype="bfloat16")
    expected = torch.from_numpy(values()[:3]).bfloat16().float().numpy()
    assert again.done.all() and np.array_equal(again.table(), expected)
    assert np.load(tmp_path / "table" / FEATURES, mmap_mode="r").nbytes == 3 * WIDTH * 2
    spoil(tmp_path / "table", slice(1, 2), 7)
    assert FeatureStore(tmp_path / "table", 3, WIDTH, dtype="bfloat16").done.tolist() == [1, 0, 1]


def spoil(folder: Path, rows: slice, content: np.ndarray | float) -> None:
    table = np.load(folder / FEATURES, mmap_mode="r+")
    table[rows] = content
    table.flush()


@pytest.mark.parametrize(
    ("rows", "content"),
    [
        (slice(10, 13), 0.0),
        (slice(10, 13), np.nan),
        (slice(4990, 5000), values()[4989:4999]),
        (slice(0, 5000), 0.0),
    ],
    ids=["zeros", "nan", "shifted", "all"],
)
def test_rows_that_were_changed_are_computed_again_and_counted(
    rows: slice, content: np.ndarray | float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "table"
    filled(folder)
    spoil(folder, rows, content)
    store = FeatureStore(folder, ROWS, WIDTH)
    wrong = np.arange(ROWS)[rows]
    assert np.flatnonzero(store.done == 0).tolist() == wrong.tolist()
    assert f"{len(wrong)} of {ROWS} cached rows are damaged" in capsys.readouterr().err
    # The other processes of the machine learn of it from the file.
    assert (FeatureStore(folder, ROWS, WIDTH, verify=False).done == store.done).all()
    store.write(wrong, values()[wrong])
    np.testing.assert_array_equal(FeatureStore(folder, ROWS, WIDTH).table(), values())


@pytest.mark.parametrize("bit", [0, 1, 7, 30])
def test_a_single_bit_shows(bit: int, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    filled(folder)
    words = np.load(folder / FEATURES, mmap_mode="r+").view(np.uint32)
    words[77, 3] ^= np.uint32(1 << bit)
    words.flush()
    assert np.flatnonzero(FeatureStore(folder, ROWS, WIDTH).done == 0).tolist() == [77]


@pytest.mark.parametrize("name", [FEATURES, CHECKS])
@pytest.mark.parametrize("cached", [0, 60, 1000])
def test_a_file_that_was_cut_off_is_made_again(name: str, cached: int, tmp_path: Path) -> None:
    filled(tmp_path / "table")
    path = tmp_path / "table" / name
    path.write_bytes(path.read_bytes()[:cached])
    assert not FeatureStore(tmp_path / "table", ROWS, WIDTH).done.any()


def test_a_table_of_another_shape_is_made_again(tmp_path: Path) -> None:
    filled(tmp_path / "table")
    assert not FeatureStore(tmp_path / "table", ROWS, WIDTH + 1).done.any()


def test_folders_of_a_cache_have_the_permissions_of_the_folder_they_lie_in(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o775)
    before = os.umask(0o077)
    try:
        FeatureStore(cache / "features" / "table", 3, 2)
    finally:
        os.umask(before)
    assert (cache / "features" / "table").stat().st_mode & 0o777 == 0o775
    for name in (FEATURES, CHECKS):
        assert (cache / "features" / "table" / name).stat().st_mode & 0o777 == 0o664
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    make_folder(private / "a" / "b")
    assert (private / "a" / "b").stat().st_mode & 0o777 == 0o700


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all files were another user's, which root could write nevertheless."""
    real = os.access

    def access(path: Path, mode: int) -> bool:
        return real(path, mode) and not (mode & os.W_OK and Path(path).parent.name == "table")

    monkeypatch.setattr("os.access", access)


@pytest.mark.usefixtures("read_only")
def test_a_complete_table_of_another_user_is_read(tmp_path: Path) -> None:
    filled_by_other = FeatureStore(tmp_path / "table", 4, 2)
    filled_by_other.write(np.arange(4), np.ones((4, 2), np.float32))
    store = FeatureStore(tmp_path / "table", 4, 2)
    assert store.folder == tmp_path / "table" and store.done.all()


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("damaged", [False, True])
def test_an_unfinished_or_damaged_table_of_another_user_is_left_alone(
    damaged: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "table"
    rows = np.arange(4 if damaged else 3)
    FeatureStore(folder, 4, 2).write(rows, np.ones((len(rows), 2), np.float32))
    if damaged:
        spoil(folder, slice(0, 1), 0.0)
    content = (folder / CHECKS).read_bytes()
    store = FeatureStore(folder, 4, 2)
    assert store.folder == tmp_path / f"table-{os.getuid()}" and not store.done.any()
    store.write(np.arange(4), np.full((4, 2), 3, np.float32))
    assert FeatureStore(folder, 4, 2, verify=False).table()[0, 0] == 3
    assert (folder / CHECKS).read_bytes() == content
