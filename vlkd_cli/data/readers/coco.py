"""Caption files of COCO, in the original layout and in Karpathy's, which Flickr8k and Flickr30k
also use."""

from __future__ import annotations

import json
import os
import warnings
from typing import Any, Literal

from vlkd_cli.data.files.remote import is_url, joined, local_copy, parent_of
from vlkd_cli.data.readers.captioned_images import CaptionedImages
from vlkd_cli.errors import DataError


class COCO(CaptionedImages):
    """Images and captions of a COCO captions file, or of one split of a Karpathy file.

    Args:
        path: the json file, or a URL.
        image_root: folder or URL of the images; by default the one that the json lies in.
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
        split: Literal["train", "val", "test"] | None = None,
        restval: bool = True,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        has_place = "{split}" in path
        path = path.replace("{split}", split or "train")
        self.split = split
        content = _load(path)
        root = parent_of(path) if image_root is None else image_root
        if image_root is not None and not is_url(root) and not os.path.isdir(root):
            raise DataError(f"data.image_root {root}: no such folder.")
        try:
            if "annotations" in content:
                if split is not None and not has_place:
                    raise DataError(
                        f"data.split is '{split}', but {path} has no splits: it is a COCO captions"
                        " file. Put '{split}' into data.path."
                    )
                pairs = _original(content, path)
            else:
                pairs = _karpathy(content, None if has_place else split, restval)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: an entry is not as in COCO or Karpathy caption files"
                f" ({type(error).__name__}: {error})."
            ) from None
        if not pairs:
            raise DataError(
                f"{path}: no image with captions" + (f" in split '{split}'." if split else ".")
            )
        super().__init__(
            root, (image for image, _ in pairs), (captions for _, captions in pairs), part
        )
        first = joined(root, pairs[0][0])
        if not is_url(first) and not any(
            os.path.exists(joined(root, image)) for image, _ in pairs[:3]
        ):
            raise DataError(
                f"{path}: its first images are not there, e.g. {first}. Set data.image_root to"
                " their folder."
            )


def _load(path: str) -> dict[str, Any]:
    file = local_copy(path, "captions file")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}). Fetch the file again.") from None
    if not isinstance(content, dict) or "images" not in content:
        found = (
            ", ".join(list(content)[:5]) if isinstance(content, dict) else type(content).__name__
        )
        raise DataError(
            f"{path} has no 'images' (found: {found}). COCO caption files and Karpathy files have."
        )
    return content


def _original(content: dict[str, Any], path: str) -> list[tuple[str, list[str]]]:
    captions: dict[Any, list[str]] = {}
    for annotation in content["annotations"]:
        if "caption" not in annotation:
            raise DataError(
                f"{path} holds annotations without captions (instances or keypoints?). Take the"
                " captions_*.json file."
            )
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    pairs = [
        (image["file_name"], captions[image["id"]])
        for image in content["images"]
        if image["id"] in captions
    ]
    if len(pairs) < len(content["images"]):
        warnings.warn(
            f"{path}: {len(content['images']) - len(pairs)} images have no caption and are left"
            " out.",
            stacklevel=4,
        )
    return pairs


def _karpathy(
    content: dict[str, Any], split: str | None, restval: bool
) -> list[tuple[str, list[str]]]:
    wanted = {split} | ({"restval"} if split == "train" and restval else set())
    return [
        (
            "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part),
            [" ".join(sentence["raw"].split()) for sentence in image["sentences"]],
        )
        for image in content["images"]
        if (split is None or image.get("split") in wanted) and image["sentences"]
    ]
