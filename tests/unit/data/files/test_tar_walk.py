from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vlkd_cli.data.files.tar_walk import End, Gap, Member, path_before, walk


def walked(path: Path) -> list[Member | Gap | End]:
    with open(path, "rb") as file:
        return list(walk(file.fileno(), path.stat().st_size))


def write(path: Path, names: list[str], kind: int = tarfile.PAX_FORMAT) -> bytes:
    with tarfile.open(path, "w", format=kind) as tar:
        for number, name in enumerate(names):
            entry = tarfile.TarInfo(name)
            entry.size = 300 * number
            tar.addfile(entry, io.BytesIO(bytes([number]) * entry.size))
    return path.read_bytes()


LONG = "folder/" * 40 + "picture.jpg"


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, kind: int) -> None:
    names = ["a.jpg", "caf\u00e9/b.txt", "d/" * 60 + "e.txt", "last.cls"]
    names += [LONG] if kind != tarfile.USTAR_FORMAT else []
    path = tmp_path / "s.tar"
    write(path, names, kind)
    with tarfile.open(path) as tar:
        expected = [Member(each.name, each.offset_data // 512, each.size) for each in tar]
    *members, end = walked(path)
    assert members == expected and isinstance(end, End) and end.is_marked and end.is_usual
    with open(path, "rb") as file:
        assert [path_before(file.fileno(), member.block) for member in expected] == names


def test_links_folders_and_appended_archives_do_not_end_the_walk(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d", tarfile.DIRTYPE), ("l", tarfile.SYMTYPE), ("f", tarfile.REGTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "f" if kind == tarfile.SYMTYPE else ""
            tar.addfile(entry)
    path.write_bytes(path.read_bytes() + write(tmp_path / "other.tar", ["g", "h"]))
    assert [each.path for each in walked(path) if isinstance(each, Member)] == ["f", "g", "h"]
    assert not any(isinstance(each, Gap) for each in walked(path))


@pytest.mark.parametrize("junk", [b"\xff" * 512, b"\0" * 512, b"\xff" * 700, b"\0" * 100])
def test_a_damaged_header_is_a_gap_and_the_next_one_is_found(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "s.tar"
    content = bytearray(write(path, ["a", "b", "c", "d"]))
    with tarfile.open(path) as tar:
        place = tar.getmember("c").offset
    content[place : place + len(junk)] = junk
    path.write_bytes(bytes(content))
    found = walked(path)
    assert [each.path for each in found if isinstance(each, Member)] == ["a", "b", "d"]
    (gap,) = [each for each in found if isinstance(each, Gap)]
    assert gap.byte == place and not gap.is_end


@pytest.mark.parametrize("size", [512 * 2 + 100, 512 * 4 + 10])
def test_a_file_that_is_cut_off_ends_in_a_gap(tmp_path: Path, size: int) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(write(path, ["a", "b", "c"])[:size])
    *members, last = walked(path)
    assert members == [Member("a", 1, 0), Member("b", 2, 300)][: len(members)] and members
    assert isinstance(last, Gap) and last.is_end


def test_a_file_that_is_not_an_archive_is_one_gap(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(b"no archive at all" * 500)
    assert [type(each) for each in walked(path)] == [Gap]
