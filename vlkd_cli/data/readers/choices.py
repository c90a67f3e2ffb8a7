"""Images with captions that describe them and captions that do not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from vlkd_cli.data.files.choices import WINOGROUND_FILE, Box, Choice, Layout, read_choices
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.named_texts import MAIN, span_of
from vlkd_cli.data.files.remote import joined
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.readers.reader import Reader, with_split
from vlkd_cli.errors import DataError

WRONG = "wrong"
"""The name of the captions that do not describe the image."""
_ROOTS = ("", "images", "val2017", "val2014", "coco/val2017", "coco/val2014")
_FIRST_IMAGES = 3


class Choices(Reader):
    """Items of a file of right and wrong captions: the caption is the right one (there may be
    several), the text `wrong` holds the others, e.g. for `text@wrong` as hard negatives.

    The layout is recognized: SugarCrepe (`{id: {filename, caption, negative_caption}}`), ARO's
    VG_Relation and VG_Attribution (the image is cropped to its box), ARO's COCO_Order and
    Flickr30k_Order (`caption_options`, the first one right), Winoground (`examples.jsonl`; each of
    an example's two images is an item, next to each other), or a list of
    `{image, right, wrong: [...], group}`, `group` optional.

    Args:
        path: the .json or .jsonl file, or Winoground's folder; `{split}` in it is replaced by
            `split`.
        image_root: folder of the images; by default the file's own, or `images`, `val2017` and the
            like in it or in one of the two folders above it.
        split: replaces `{split}` in `path`.

    Source: the data of SugarCrepe @6e45274, ARO @81fdd20 and Winoground (formats only).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "choices", "group"})
    text_views: ClassVar[tuple[str, ...]] = ("wrong",)
    text_names = text_views

    layout: Layout

    def __init__(
        self, *, path: str, image_root: str | None = None, split: str | None = None
    ) -> None:
        self.split = split
        file = _file(os.path.expanduser(with_split(path, split)))
        self.path = str(file)
        self.layout, items = read_choices(file)
        self.image_root = _root(file, items, image_root)
        self._paths = TextTable(item.image for item in items)
        self._texts = TextTable(text for item in items for text in (*item.right, *item.wrong))
        self._counts = np.array([(len(item.right), len(item.wrong)) for item in items])
        self._starts = np.concatenate([[0], np.cumsum(self._counts.sum(1))]).astype(np.int64)
        self._groups = TextTable(item.group for item in items)
        self.has_groups = any(item.group for item in items)
        self._boxes: list[Box | None] = [item.box for item in items]
        seen: dict[tuple[str, Box | None], int] = {}
        self.first_rows = np.array(
            [seen.setdefault((item.image, item.box), row) for row, item in enumerate(items)]
        )
        """For each item, the first one with the same picture, `[N]` int64."""

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> str | Image.Image:
        box = self._boxes[index]
        if box is None:
            return self.name(index)
        # As ARO crops: what lies beyond the picture is black.
        return Image.fromarray(decode(self.name(index))).crop(box)

    def captions(self, index: int) -> Sequence[str]:
        start, stop = self._starts[index : index + 2].tolist()
        return self._texts.slice(start, stop)

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        right, wrong = self._counts[index].tolist()
        return span_of({MAIN: right, WRONG: wrong}, name)

    def group(self, index: int) -> str:
        return self._groups[index]

    def name(self, index: int) -> str:
        return joined(self.image_root, self._paths[index])

    def id(self, index: int) -> str:
        return f"{self.name(index)}#{index}"

    def fingerprint(self) -> str:
        return digest_of(
            "choices",
            self.layout,
            self._paths.digest(),
            self._texts.digest(),
            self._counts.tobytes(),
            self._groups.digest(),
            self._boxes,
            digest_files(self.name(index) for index in probed(len(self))),
        )

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        starts: np.ndarray = self._starts[indices]
        return starts


def choice_files(folder: Path) -> list[Path]:
    """The files of right and wrong captions right in a folder, by their endings."""
    if (folder / WINOGROUND_FILE).is_file():
        return [folder / WINOGROUND_FILE]
    return sorted(path for path in folder.glob("*.json") if path.is_file())


def _file(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        return folder
    found = choice_files(folder)
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:10]) or "none"
        raise DataError(
            f"data.path {path}: expected one file of right and wrong captions in this folder; there"
            f" are {len(found)} .json files ({names}). Name the file."
        )
    return found[0]


def _root(file: Path, items: Sequence[Choice], chosen: str | None) -> str:
    """The folder of the images: the one given, else the first likely one that has them."""
    first = [item.image for item in items[:_FIRST_IMAGES]]
    if chosen is not None:
        roots = [Path(os.path.expanduser(chosen))]
        if not roots[0].is_dir():
            raise DataError(f"data.image_root {chosen}: no such folder.")
    else:
        folder = file.resolve().parent
        above = (folder, folder.parent, folder.parent.parent)
        roots = [base / name for base in above for name in _ROOTS]
    for root in roots:
        if any((root / name).is_file() for name in first):
            return str(root)
    raise DataError(
        f"{file}: its first images do not exist, e.g. {roots[0] / first[0]}. Set data.image_root to"
        " their folder."
    )
