"""ObjectNet: objects in unusual poses, with the 113 classes that it shares with ImageNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.files.texts import (
    clean_text,
    kind_of,
    parse_json,
    read_file,
    read_text,
    split_lines,
)
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.images.files import find_images
from vlkd_cli.data.readers.reader import Reader, with_split
from vlkd_cli.errors import DataError

FOLDERS, TO_IMAGENET = "folder_to_objectnet_label.json", "objectnet_to_imagenet_1k.json"
NUMBERS, IMAGENET_NAMES = "pytorch_to_imagenet_2012_id.json", "imagenet_to_label_2012_v2"


class ObjectNet(Reader):
    """The images of the classes that ObjectNet shares with ImageNet, labeled by their folder;
    classes are numbered by folder and named as in `mappings/`, in lower case.

    Args:
        path: the folder with `mappings/` and `images/` (or `objectnet-1.0/images/`); `{split}` in
            it is replaced by `split`.
        names: suite zero_shot classifies into ObjectNet's own names, or scores each class by the
            best of the ImageNet classes that `mappings/` gives for it.
        crop_px: pixels cut off at every side: the pictures have a red border, which WiSE-FT cuts
            off with 2.
        split: replaces `{split}` in `path`.

    Source: Barbu et al., ObjectNet (NeurIPS 2019); classes as clip_benchmark's objectnet.py.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    has_captions = False

    def __init__(
        self,
        *,
        path: str,
        names: Literal["own", "imagenet"] = "own",
        crop_px: int = 0,
        split: str | None = None,
    ) -> None:
        if crop_px < 0:
            raise DataError("data.crop_px must be at least 0.")
        self.split, self.crop_px = split, crop_px
        root = Path(os.path.expanduser(with_split(path, split)))
        mappings = _Mappings(_found(root, ("mappings", "objectnet-1.0/mappings", ""), FOLDERS))
        self._folder = _found(root, ("objectnet-1.0/images", "images"), "")
        shared = sorted(mappings.imagenet_of)
        label = {folder: number for number, folder in enumerate(shared)}
        self.classes = [mappings.name_of[folder].lower() for folder in shared]
        self.imagenet_columns = (
            [mappings.imagenet_of[folder] for folder in shared] if names == "imagenet" else None
        )
        """Of each class, the numbers of its ImageNet classes, where they are asked for."""
        images = [name for name in find_images(self._folder) if name.partition("/")[0] in label]
        if not images:
            raise DataError(f"{self._folder}: no image in the folders of {mappings.folder}.")
        self._images = TextTable(images)
        self._labels = np.array([label[name.partition("/")[0]] for name in images], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> str | Image.Image:
        if not self.crop_px:
            return self.name(index)
        pixels = decode(self.name(index))
        edge = self.crop_px
        if min(pixels.shape[:2]) <= 2 * edge:
            raise Broken(f"nothing is left of it after crop_px: {edge}")
        return Image.fromarray(np.ascontiguousarray(pixels[edge:-edge, edge:-edge]))

    def captions(self, index: int) -> Sequence[str]:
        return ()

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels.take(indices)

    def name(self, index: int) -> str:
        return str(self._folder / self._images[index])

    def fingerprint(self) -> str:
        return digest_of(
            "objectnet",
            self.crop_px,
            list(self.classes or ()),
            self.imagenet_columns,
            self._images.digest(),
            digest_files(self.name(index) for index in probed(len(self))),
        )

    def caption_start(self, index: int) -> int:
        return 0


class _Mappings:
    """The content of `mappings/`: the name of each folder, and its ImageNet classes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name_of = self._texts(FOLDERS)
        folder_of = {name: subfolder for subfolder, name in self.name_of.items()}
        numbers = self._texts(NUMBERS).items()
        number_of = {line: int(number) for number, line in numbers if number.isdecimal()}
        lines = [line.strip() for line in split_lines(read_text(folder / IMAGENET_NAMES))]
        by_name = {line: number_of.get(str(row)) for row, line in enumerate(lines)}
        self.imagenet_of: dict[str, list[int]] = {}
        for name, listed in self._texts(TO_IMAGENET).items():
            own = [by_name.get(each) for each in listed.split("; ")]
            if name not in folder_of or None in own:
                raise DataError(
                    f"{folder / TO_IMAGENET}: '{name}' does not agree with {FOLDERS}, {NUMBERS} or"
                    f" {IMAGENET_NAMES}. Fetch the files again."
                )
            self.imagenet_of[folder_of[name]] = [number for number in own if number is not None]

    def _texts(self, file: str) -> dict[str, str]:
        path = self.folder / file
        try:
            content: Any = parse_json(read_file(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
        except ValueError as error:
            raise DataError(f"{path}: is not valid JSON ({error}). Fetch it again.") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: is {kind_of(content)}, not an object.")
        return {clean_text(key): clean_text(str(value)) for key, value in content.items()}


def _found(root: Path, subfolders: Sequence[str], file: str) -> Path:
    for subfolder in subfolders:
        if (root / subfolder / file).exists():
            return root / subfolder
    what = f"{subfolders[0]}/{file}" if file else f"{' or '.join(subfolders)}"
    raise DataError(f"data.path {root}: has no {what}. Name the folder that ObjectNet unpacks to.")
