"""Finding image files in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vlkd_cli.errors import DataError

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
        ".avif",
    }
)


def existing_folder(place: str, key: str) -> Path:
    """The folder of a recipe key.

    Raises:
        DataError: there is none.
    """
    folder = Path(place).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"data.{key} {place}: no such folder (relative paths begin at {Path.cwd()})."
        )
    return folder


def find_images(folder: Path) -> list[str]:
    """Paths of all images below a folder, relative to it, in an order that does not depend on the
    file system."""
    return sorted(_walk(folder, ""))


def _walk(folder: Path, below: str) -> Iterator[str]:
    with os.scandir(folder / below) as entries:
        for entry in entries:
            inner = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                yield from _walk(folder, inner)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield inner
