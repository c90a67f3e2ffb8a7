"""A folder of images, each next to a text file of the same name."""

from __future__ import annotations

import os
from typing import Literal

from vlkd_cli.data.files.texts import decode_text, entries_of, read_file
from vlkd_cli.data.images.files import existing_folder, find_images
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.data.readers.reader import with_split
from vlkd_cli.errors import DataError


class Folder(CaptionedImages):
    """Images below a folder, each with its captions, one per line, in a `.txt` file of the same
    stem.

    Args:
        path: the folder; sub-folders are searched too. `{split}` in it is replaced by `split`.
        missing: what to do with images without a text file: refuse the data, or leave these images
            out.
        encoding: of the text files.
        split: which split, where `path` has a place for it.
        part: take only this part of the images, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    def __init__(
        self,
        *,
        path: str,
        missing: Literal["refuse", "leave_out"] = "refuse",
        encoding: str = "utf-8",
        split: str | None = None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.split = split
        folder = existing_folder(with_split(path, split), "path")
        images = find_images(folder)
        if not images:
            raise DataError(f"data.path {path}: there is no image below this folder.")
        captions = [
            _captions(os.path.join(folder, os.path.splitext(image)[0] + ".txt"), encoding)
            for image in images
        ]
        bare = [image for image, own in zip(images, captions, strict=True) if not own]
        if len(bare) == len(images):
            raise DataError(
                f"data.path {path}: none of the {len(images)} images has captions, in a .txt file"
                " of the same stem. For images alone, set data.reader: images."
            )
        if bare and missing == "refuse":
            raise DataError(
                f"data.path {path}: {len(bare)} of {len(images)} images have no captions, e.g."
                f" {bare[0]}. Put them into a .txt file of the same stem, or set data.missing:"
                " leave_out."
            )
        self.num_left_out = len(bare)
        with_text = [k for k, own in enumerate(captions) if own]
        super().__init__(
            str(folder), (images[k] for k in with_text), (captions[k] for k in with_text), part
        )


def _captions(path: str, encoding: str) -> list[str]:
    try:
        return entries_of(decode_text(read_file(path), encoding))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}. Set data.encoding.") from None
