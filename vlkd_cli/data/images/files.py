"""Which files are images, and finding them in folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean_path
from vlkd_cli.errors import DataError

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "GIF": ("gif",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "JPEG2000": ("jp2", "j2k", "jpf", "jpx", "j2c", "jpc"),
    "AVIF": ("avif", "avifs"),
}
"""Formats that are decoded, by Pillow's name, with the suffixes of their files. Data from strangers
must not reach the decoders of rare formats, some of which start other programs (EPS)."""

SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Suffixes of image files, without the dot; the commonest first."""

_OTHER_PICTURES = frozenset(
    "heic heif hif jxl svg psd ico icns tga eps raw dng cr2 cr3 nef arw orf rw2 exr hdr".split()
)


def existing_folder(path: str, key: str) -> Path:
    """The folder of a recipe key; `~` is expanded.

    Raises:
        DataError: it does not exist.
    """
    folder = Path(os.path.expanduser(path))
    if not os.path.isdir(folder):
        raise DataError(
            f"data.{key} {path}: no such folder (relative paths start from {Path.cwd()})."
            f"{did_you_mean_path(folder)}"
        )
    return folder


def is_data(path: str) -> bool:
    """Whether a file of this path below a data folder or in an archive counts: files and folders
    whose names begin with a dot, and `__MACOSX`, are what systems and editors leave behind."""
    if "." not in path[:1] and "/." not in path and "__MACOSX" not in path:
        return True
    return not any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX"
        for part in path.split("/")
    )


def suffix_of(path: str) -> str:
    """What follows the last dot of a file name, lower case."""
    return os.path.splitext(path)[1][1:].lower()


def find_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, in an order that does not depend on the
    file system. Pictures of formats that are not read are counted in a warning."""
    images: list[str] = []
    others: Counter[str] = Counter()
    for path in find_files(folder):
        suffix = suffix_of(path)
        if suffix in SUFFIXES:
            images.append(path)
        elif suffix in _OTHER_PICTURES:
            others[suffix] += 1
    if others:
        each = ", ".join(f".{suffix}: {count}" for suffix, count in sorted(others.items()))
        console.warn_once(
            f"{folder}: {others.total()} of {others.total() + len(images)} pictures are left out"
            f" because their format is not supported ({each}). Convert them to JPEG or PNG."
        )
    return sorted(images)


def find_folders(folder: Path) -> list[str]:
    """Names of the folders right below a folder, in order. A link to a folder above, or to one that
    is listed already, leads nowhere new and is left out."""
    with os.scandir(folder) as found:
        entries = sorted(
            (each for each in found if is_data(each.name) and each.is_dir()),
            key=lambda each: (each.is_symlink(), each.name),
        )
    resolved = folder.resolve()
    known, names = {resolved, *resolved.parents}, []
    for entry in entries:
        if (path := Path(entry.path).resolve()) not in known:
            known.add(path)
            names.append(entry.name)
    return sorted(names)


def find_files(folder: Path) -> Iterator[str]:
    """Files below a folder. Links to folders are followed once everything else was seen, each
    folder is entered once, and those above the first one never."""
    entered = {(status.st_dev, status.st_ino) for status in map(os.stat, folder.resolve().parents)}
    folders = [""]
    links: list[str] = []
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            folders.append(links.pop())
        below = folders.pop()
        try:
            status = os.stat(folder / below)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder / below) as found:
                entries = list(found)
        except OSError as error:
            raise DataError(
                f"folder {folder / below} cannot be read ({error.strerror}). Check its permissions."
            ) from None
        for entry in entries:
            inner = f"{below}/{entry.name}" if below else entry.name
            if not is_data(entry.name):
                continue
            if not entry.is_dir():
                yield inner
            else:
                (links if entry.is_symlink() else folders).append(inner)
