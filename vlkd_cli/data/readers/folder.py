"""A folder of images, each next to a text file of the same name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
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
        split: replaces `{split}` in `path`.
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
            raise DataError(f"data.path {path}: no image in this folder or below it.")
        captions, problems = _read_captions(folder, images, encoding)
        bare = [k for k, own in enumerate(captions) if not own and k not in problems]
        if len(bare) == len(images):
            raise DataError(
                f"data.path {path}: none of the {len(images)} images has captions, in a .txt file"
                " of the same stem. For images alone, set data.reader: images."
            )
        if len(bare) + len(problems) == len(images):
            first = min(problems)
            raise DataError(f"{images[first]}: {problems[first]}. Set data.encoding.")
        if bare and missing == "refuse":
            raise DataError(
                f"data.path {path}: {len(bare)} of {len(images)} images have no captions, e.g."
                f" {images[bare[0]]}. Put them into a .txt file of the same stem, or set"
                " data.missing: leave_out."
            )
        self.num_left_out = len(bare)
        left_out = set(bare)
        stay = [k for k in range(len(images)) if k not in left_out]
        super().__init__(
            str(folder),
            (images[k] for k in stay),
            (captions[k] for k in stay),
            {new: problems[k] for new, k in enumerate(stay) if k in problems},
            part,
        )


def _read_captions(
    folder: Path, images: Sequence[str], encoding: str
) -> tuple[list[list[str]], dict[int, str]]:
    """The captions of each image, none where there is no text file; and why the file cannot be read
    where it is damaged, by the image's position."""
    captions: list[list[str]] = []
    problems: dict[int, str] = {}
    for number, image in enumerate(images):
        text = os.path.splitext(image)[0] + ".txt"
        own: list[str] = []
        try:
            own = entries_of(decode_text(read_file(folder / text), encoding))
        except FileNotFoundError:
            pass  # counted with those whose file is empty
        except OSError as error:
            problems[number] = f"{text} cannot be read ({error.strerror})"
        except ValueError as error:
            problems[number] = f"{text} cannot be read: {error}"
        captions.append(own)
    return captions, problems
