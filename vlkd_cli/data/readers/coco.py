"""Caption files of COCO, in the original layout and in Karpathy's, which Flickr8k and Flickr30k
also use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

from vlkd_cli import console
from vlkd_cli.data.caption_choice import checked_weights
from vlkd_cli.data.files.remote import expanded, is_url, joined, local_copy, parent_of
from vlkd_cli.data.files.texts import kind_of, parse_json, text_of
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.errors import DataError

_Pair = tuple[str, list[tuple[int, str]]]
"""Path of an image, and its captions, each with the number of its source."""


class COCO(CaptionedImages):
    """Images and captions of a COCO captions file, or of one split of a Karpathy file.

    Args:
        path: the json file, or a URL.
        image_root: folder or URL of the images; by default the folder of the json.
        caption: key of the caption in an annotation or, in Karpathy's layout, in a sentence; by
            default `caption` and `raw`. Several keys: each is a source of captions, and one that is
            missing or empty gives none.
        caption_weights: how often each of several keys is chosen, in any unit; an image without the
            chosen one gives the next. By default all captions of an image are equally likely.
        split: of a Karpathy file; by default all of it. `{split}` in `path` is replaced by it, for
            files of the original layout.
        restval: count Karpathy's "restval" images among the training images, as is usual.
        part: take only this part of the images, in a fixed random order: `[0, 0.9]` to train on,
            `[0.9, 1]` to choose by.
    """

    def __init__(
        self,
        *,
        path: str,
        image_root: str | None = None,
        caption: str | list[str] | None = None,
        caption_weights: list[float] | None = None,
        split: Literal["train", "val", "test"] | None = None,
        restval: bool = True,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        has_place = "{split}" in path
        path = expanded(path.replace("{split}", split or "train"))
        self.split = split
        content = _load(path)
        keys = [caption] if isinstance(caption, str) else list(caption or ())
        weights = checked_weights(caption_weights, len(keys))
        root = parent_of(path) if image_root is None else expanded(image_root)
        if image_root is not None and not is_url(root) and not os.path.isdir(root):
            raise DataError(f"data.image_root {image_root}: no such folder.")
        if "annotations" not in content:
            part_of_file = None if has_place else split
            pairs = _karpathy(content, path, part_of_file, restval, keys or ["raw"])
        elif split is not None and not has_place:
            raise DataError(
                f"data.split is '{split}', but {path} has no splits: it is a COCO captions file."
                " Put '{split}' into data.path."
            )
        elif not restval:
            raise DataError(f"data.restval has no effect: {path} has no splits. Leave it out.")
        else:
            pairs = _original(content, path, keys or ["caption"])
        if not pairs:
            raise DataError(
                f"{path}: no image with captions" + (f" in split '{split}'." if split else ".")
            )
        super().__init__(
            root,
            (image for image, _ in pairs),
            ([text for _, text in captions] for _, captions in pairs),
            part=part,
            sources=[source for _, captions in pairs for source, _ in captions],
            caption_weights=weights,
        )
        first = joined(root, pairs[0][0])
        if not is_url(first) and not any(
            os.path.exists(joined(root, image)) for image, _ in pairs[:3]
        ):
            raise DataError(
                f"{path}: its first images do not exist, e.g. {first}. Set data.image_root to"
                " their folder."
            )


def _load(path: str) -> dict[str, object]:
    file = local_copy(path, "captions file")
    try:
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Fetch the file again.") from None
    if not isinstance(content, dict) or "images" not in content:
        found = ", ".join(list(content)[:5]) if isinstance(content, dict) else kind_of(content)
        raise DataError(
            f"{path} has no 'images' (found: {found}). COCO caption files and Karpathy files have."
        )
    return content


def _original(content: dict[str, object], path: str, keys: list[str]) -> list[_Pair]:
    captions: dict[object, list[tuple[int, str]]] = {}
    for entry in _entries(content, "annotations", path):
        if not any(key in entry.values for key in keys):
            if keys != ["caption"]:
                raise DataError(
                    f"{entry.where} has no {' or '.join(map(repr, keys))} (data.caption). Its keys:"
                    f" {', '.join(entry.values)}."
                )
            raise DataError(
                f"{path} holds annotations without captions (instances or keypoints?). Take the"
                " captions_*.json file."
            )
        captions.setdefault(entry.id("image_id"), []).extend(entry.texts(keys))
    images = [
        (entry.id("id"), entry.path("file_name")) for entry in _entries(content, "images", path)
    ]
    pairs = [(name, captions[image]) for image, name in images if captions.get(image)]
    if len(pairs) < len(images):
        console.warn_once(
            f"{path}: {len(images) - len(pairs)} images have no caption and are left out."
        )
    return pairs


def _karpathy(
    content: dict[str, object], path: str, split: str | None, restval: bool, keys: list[str]
) -> list[_Pair]:
    wanted = [split] + ["restval"] * (split == "train" and restval)
    pairs = []
    for entry in _entries(content, "images", path):
        if split is not None and entry.values.get("split") not in wanted:
            continue
        sentences = _entries(entry.values, "sentences", entry.where)
        captions = [
            (source, " ".join(text.split()))
            for sentence in sentences
            for source, text in sentence.texts(keys)
        ]
        folder = entry.path("filepath") if entry.values.get("filepath") else ""
        if captions:
            name = entry.path("filename")
            pairs.append((f"{folder}/{name}" if folder else name, captions))
    return pairs


class _Entry:
    """An object in a list of the file; what is missing or of another type is named by its
    index."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise DataError(f"{where} is {kind_of(values)}, not an object.")
        self.values, self.where = values, where

    def text(self, key: str) -> str:
        try:
            return text_of(self._get(key))
        except ValueError as error:
            raise DataError(f"{self.where}.{key} is {error}.") from None

    def texts(self, keys: list[str]) -> list[tuple[int, str]]:
        """The texts of the keys, each with the position of its key; of several keys, those that are
        there and not empty."""
        if len(keys) == 1:
            return [(0, self.text(keys[0]))]
        there = [(k, key) for k, key in enumerate(keys) if self.values.get(key) is not None]
        return [(k, text) for k, key in there if (text := self.text(key))]

    def path(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str) or not value:
            raise DataError(
                f"{self.where}.{key} is {kind_of(value) if value else 'empty'}, not a path."
            )
        return value

    def id(self, key: str) -> int | str:
        value = self._get(key)
        if not isinstance(value, int | str):
            raise DataError(f"{self.where}.{key} is {kind_of(value)}, not an id.")
        return value

    def _get(self, key: str) -> object:
        if key not in self.values:
            raise DataError(
                f"{self.where} has no '{key}', as COCO and Karpathy caption files have."
            )
        return self.values[key]


def _entries(values: dict[str, object], key: str, where: str) -> Iterator[_Entry]:
    entries = values.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{where}: '{key}' is {kind_of(entries)}, not a list.")
    for number, entry in enumerate(entries):
        yield _Entry(entry, f"{where}: {key}[{number}]")
