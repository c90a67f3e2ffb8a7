"""Images alone: a folder of them, or a list of their paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from vlkd_cli.data.files.remote import expanded, is_url, joined
from vlkd_cli.data.files.texts import read_entries
from vlkd_cli.data.images.files import existing_folder, find_images
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.data.readers.reader import with_split
from vlkd_cli.errors import DataError


class Images(CaptionedImages):
    """Images without captions or labels, for self-supervision.

    Args:
        path: a folder, whose sub-folders are searched too and mean nothing; or a text file with one
            path or URL per line, relative to the file's folder. `{split}` in it is replaced by
            `split`.
        split: replaces `{split}` in `path`.
        part: take only this part of the images, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image"})
    has_captions = False

    def __init__(
        self, *, path: str, split: str | None = None, part: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        self.split = split
        path = expanded(with_split(path, split))
        if os.path.isfile(path):
            root, images = os.path.dirname(path), read_entries(path)
            _check_first(path, root, images)
        else:
            root = str(existing_folder(path, "path"))
            images = find_images(Path(root))
        if not images:
            raise DataError(f"data.path {path}: it has no images.")
        super().__init__(root, images, ([] for _ in images), part=part)


def _check_first(path: str, root: str, images: list[str]) -> None:
    first_paths = [joined(root, image) for image in images[:3]]
    if first_paths and not any(is_url(first) or os.path.isfile(first) for first in first_paths):
        raise DataError(
            f"{path}: its first images do not exist, e.g. {first_paths[0]}. Each line is a path,"
            " relative to the folder of the list."
        )
