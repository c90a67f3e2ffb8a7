from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.data_sets import encoded, photo
from vlkd_cli import console
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.images.files import FORMATS, SUFFIXES, find_folders, find_images, is_data


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_images_are_found_by_any_suffix_in_any_case(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{suffix}/a.{suffix.upper()}" for suffix in SUFFIXES), "a.txt", "b", "c.npy")
    assert find_images(tmp_path) == sorted(f"{suffix}/a.{suffix.upper()}" for suffix in SUFFIXES)
    assert {"jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff"} <= set(
        SUFFIXES
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_named_is_decoded(kind: str) -> None:
    assert decode(encoded(photo(1), kind)).shape == (40, 56, 3)


def test_what_systems_and_editors_leave_behind_is_not_data(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("cat/0.jpg", "cat/._0.jpg", "cat/.thumbs/1.jpg", ".ipynb_checkpoints/2.jpg"),
        *("__MACOSX/cat/._0.jpg", "cat/__MACOSX/3.jpg", ".DS_Store", "cat/..jpg", "dog/1.jpg"),
    )
    assert find_images(tmp_path) == ["cat/0.jpg", "dog/1.jpg"]
    assert find_folders(tmp_path) == ["cat", "dog"]
    assert is_data("./a/b.jpg") and not is_data("a/.b/c.jpg")
    touch(tmp_path / ".cache" / "x", "0.jpg")
    assert find_images(tmp_path / ".cache" / "x") == ["0.jpg"]


def test_each_folder_is_entered_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    touch(tmp_path / "data", "b/0.jpg", "z/1.jpg")
    touch(tmp_path / "elsewhere", "2.jpg", "inner/3.jpg")
    os.symlink("..", tmp_path / "data" / "b" / "up")
    os.symlink("../data", tmp_path / "data" / "again")
    os.symlink("z", tmp_path / "data" / "a_link_to_z")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked_too")
    os.symlink(tmp_path / "nowhere", tmp_path / "data" / "dangling")
    os.symlink("b/0.jpg", tmp_path / "data" / "file_link.jpg")
    assert find_images(tmp_path / "data") == [
        "b/0.jpg",
        "file_link.jpg",
        "linked/2.jpg",
        "linked/inner/3.jpg",
        "z/1.jpg",
    ]


def test_pictures_of_formats_that_are_not_read_are_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.warn_once.cache_clear()
    touch(tmp_path, "0.jpg", "1.heic", "2.HEIC", "3.svg", "notes.txt")
    for _ in range(2):
        assert find_images(tmp_path) == ["0.jpg"]
    reported = capsys.readouterr().err
    assert reported.count("\n") == 1
    assert "3 of 4 pictures are left out" in reported and "(.heic: 2, .svg: 1)" in reported
