"""Images with captions in many languages: XTD and Crossmodal-3600."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.texts import kind_of, parse_json, read_text, split_lines, text_of
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.data.readers.reader import with_split
from vlkd_cli.errors import DataError

CROSSMODAL, XTD = "captions.jsonl", "test_image_names.txt"
"""The file by which each layout is recognized."""
_XTD_REPOSITORY = "XTD10"
"""XTD's folder in its repository, next to `MIC` with its German and French captions and `STAIR`
with its Japanese ones."""
_XTD_CAPTIONS = "test_1kcaptions_{}.txt"
_ROOTS = ("images", "", "val2014", "coco/val2014", "../coco/val2014", "../val2014")


class Multilingual(CaptionedImages):
    """Images with their captions in one of several languages.

    Two layouts are recognized: XTD (`test_image_names.txt` and a `test_1kcaptions_LANG.txt` for
    each language, a line per image; also as its repository has them, in `XTD10`, `MIC` and `STAIR`)
    and Crossmodal-3600 (`captions.jsonl`, a line per image with `image/key` and `LANG: {caption:
    [...]}`, images as `KEY.jpg`).

    Args:
        path: the folder; `{split}` in it is replaced by `split`.
        language: as the files spell it, e.g. de (XTD has Japanese as jp).
        image_root: folder of the images; by default `images` in `path`, or `path` itself.
        split: replaces `{split}` in `path`.

    Source: Aggarwal and Kale, XTD (2020); Thapliyal et al., Crossmodal-3600 (EMNLP 2022), formats
        only.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "languages"})

    def __init__(
        self,
        *,
        path: str,
        language: str = "en",
        image_root: str | None = None,
        split: str | None = None,
    ) -> None:
        self.split, self.language = split, language
        folder = Path(os.path.expanduser(with_split(path, split)))
        self.languages = languages_of(folder)
        if language not in self.languages:
            raise DataError(
                f"data.language '{language}': {folder} has no captions in it."
                f"{did_you_mean(language, self.languages)} It has: {', '.join(self.languages)}."
            )
        is_xtd = (_xtd_folder(folder) / XTD).is_file()
        pairs = list((_xtd if is_xtd else _crossmodal)(folder, language))
        root = _root(folder, image_root, pairs[0][0])
        for name, _ in pairs:
            if not (root / name).is_file():
                raise DataError(
                    f"{root / name}: this image is missing, and no caption may be left out. Fetch"
                    " the images again, or set data.image_root."
                )
        super().__init__(str(root), (name for name, _ in pairs), (own for _, own in pairs))

    def image_fingerprint(self) -> str:
        paths = (self.name(index) for index in probed(len(self)))
        return digest_of("multilingual", self._paths.digest(), digest_files(paths))


def languages_of(folder: Path) -> list[str]:
    """The languages that a folder has captions in, in alphabetical order.

    Raises:
        DataError: it is of neither layout.
    """
    if (_xtd_folder(folder) / XTD).is_file():
        return sorted(_xtd_captions(folder))
    if (folder / CROSSMODAL).is_file():
        _, first = next(_objects(folder))
        return sorted(
            key for key, value in first.items() if isinstance(value, dict) and "caption" in value
        )
    raise DataError(f"data.path {folder}: has neither {XTD} (XTD) nor {CROSSMODAL} (Crossmodal).")


def _xtd_folder(folder: Path) -> Path:
    """The folder with XTD's names of images."""
    inner = folder / _XTD_REPOSITORY
    return inner if (inner / XTD).is_file() else folder


def _xtd_captions(folder: Path) -> dict[str, Path]:
    """XTD's file of captions in each language."""
    main = _xtd_folder(folder)
    is_repository = main.name == _XTD_REPOSITORY
    others = [main.parent / name for name in ("MIC", "STAIR")] if is_repository else []
    before, after = _XTD_CAPTIONS.split("{}")
    return {
        path.name.removeprefix(before).removesuffix(after): path
        for place in (*others, main)
        for path in place.glob(_XTD_CAPTIONS.format("*"))
    }


def _xtd(folder: Path, language: str) -> Iterator[tuple[str, list[str]]]:
    path, folder = _xtd_captions(folder)[language], _xtd_folder(folder)
    images, captions = split_lines(read_text(folder / XTD)), split_lines(read_text(path))
    if len(images) != len(captions) or not images:
        raise DataError(
            f"{path}: has {len(captions)} lines, and {XTD} names {len(images)} images. Fetch both"
            " again."
        )
    for number, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        if not image.strip() or not caption.strip():
            file = path if image.strip() else folder / XTD
            raise DataError(f"{file}:{number}: is blank. Fetch the file again.")
        yield image.strip(), [caption.strip()]


def _crossmodal(folder: Path, language: str) -> Iterator[tuple[str, list[str]]]:
    for where, values in _objects(folder):
        own: Any = values.get(language)
        captions = own.get("caption") if isinstance(own, dict) else None
        key = values.get("image/key")
        if not isinstance(key, str) or not key:
            raise DataError(f"{where}: has no 'image/key'.")
        if not isinstance(captions, list) or not captions:
            raise DataError(f"{where}: image {key} has no captions in '{language}'.")
        try:
            yield f"{key}.jpg", [text_of(caption) for caption in captions]
        except ValueError as error:
            raise DataError(f"{where}: a caption of {key} in '{language}' is {error}.") from None


def _objects(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    path = folder / CROSSMODAL
    is_empty = True
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        is_empty = False
        try:
            values = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: is not valid JSON ({error}).") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}:{number}: is {kind_of(values)}, not an object.")
        yield f"{path}:{number}", values
    if is_empty:
        raise DataError(f"{path}: holds no images.")


def _root(folder: Path, chosen: str | None, first: str) -> Path:
    if chosen is not None:
        root = Path(os.path.expanduser(chosen))
        if not root.is_dir():
            raise DataError(f"data.image_root {chosen}: no such folder.")
        return root
    folders: Sequence[Path] = [folder / name for name in _ROOTS]
    return next((each for each in folders if (each / first).is_file()), folders[0])
