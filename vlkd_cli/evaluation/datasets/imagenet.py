"""Variants of ImageNet as columns of one head of its 1,000 classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import Dataset
from vlkd_cli.evaluation.datasets.known_sets import known_as, packaged
from vlkd_cli.evaluation.datasets.prompts import named_classes_of

NUM_CLASSES = 1000
WITH_ALL = ("imagenetv2", "imagenetv2_threshold0.7", "imagenetv2_top_images", "imagenet_sketch")
"""Variants that have all 1,000 classes; the folders of those of V2 are their numbers."""


class ImageNetHead(NamedTuple):
    """How scores of ImageNet's 1,000 classes become scores of a variant's classes."""

    encoded: list[str]
    """Names of the 1,000 classes, whose prompts are encoded."""
    names: list[str]
    """Of the variant's classes."""
    columns: list[list[int]]
    """ImageNet's classes that each of them covers; its score is their maximum."""
    label_of: list[int]
    """The class of each label of the reader."""

    def scores(self, scores: Tensor) -> Tensor:
        """`[N, 1000]` to `[N, C]`."""
        if all(len(own) == 1 for own in self.columns):
            return scores[:, [own[0] for own in self.columns]]
        return torch.stack([scores[:, own].amax(1) for own in self.columns], 1)

    def labels(self, labels: Tensor) -> Tensor:
        """Labels of the reader as classes."""
        return torch.tensor(self.label_of)[labels]


@cache
def wordnet_ids() -> list[str]:
    """WordNet's ids of the 1,000 classes in label order."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


@cache
def masks() -> dict[str, list[int]]:
    """The classes of ImageNet-A and -R, as numbers of ImageNet's.

    Source: clip_benchmark 1.6.2, datasets/builder.py.
    """
    return {name: list(own) for name, own in packaged("imagenet_masks.json").items()}


def imagenet_head(
    dataset: Dataset, classes: str | Sequence[str] | None = None
) -> ImageNetHead | None:
    """The head for images whose classes are ImageNet's: folders named by WordNet's ids, ImageNet-V2
    with folders 0 to 999, and ObjectNet with `names: imagenet`. None for all other data, and for
    data that brings names of its own.

    Args:
        classes: names of the 1,000 classes; by default open_clip's.

    Raises:
        DataError: an image is of a class that the variant does not have, or that ImageNet lacks.
    """
    reader = dataset.reader
    own = list(reader.classes or ())
    own_columns: Sequence[Sequence[int]] | None = getattr(reader, "imagenet_columns", None)
    known = known_as(dataset.name)
    if own_columns is not None:
        encoded = named_classes_of(classes or "open_clip:imagenet", dataset.name)
        _check_number(encoded, classes)
        columns = [list(each) for each in own_columns]
        return ImageNetHead(encoded, own, columns, list(range(len(own))))
    numbers = _numbers(own, known, dataset.name)
    if numbers is None:
        return None
    encoded = named_classes_of(classes or "open_clip:imagenet", dataset.name)
    if classes is not None and len(encoded) != NUM_CLASSES:
        return None
    mask = masks().get(known) or (
        list(range(NUM_CLASSES)) if known in WITH_ALL else sorted(set(numbers))
    )
    position = {number: k for k, number in enumerate(mask)}
    for name, number in zip(own, numbers, strict=True):
        if number not in position:
            raise DataError(
                f"data '{dataset.name}': class '{name}' is not one of its {len(mask)} classes. Take"
                " the folder out, or give the data another `name:`."
            )
    names = [encoded[number] for number in mask]
    return ImageNetHead(
        encoded, names, [[number] for number in mask], [position[number] for number in numbers]
    )


def _numbers(classes: Sequence[str], known: str, dataset: str) -> list[int] | None:
    """ImageNet's number of each class; None where the names of the classes are not such numbers or
    WordNet's ids.

    Raises:
        DataError: the data is a variant of ImageNet by its name, and ImageNet lacks a class of it.
    """
    by_number = known in WITH_ALL and known != "imagenet_sketch"
    pattern = r"\d+" if by_number else r"n\d{8}"
    if not classes or not all(re.fullmatch(pattern, name) for name in classes):
        return None
    names = map(str, range(NUM_CLASSES)) if by_number else wordnet_ids()
    number_of = {name: number for number, name in enumerate(names)}
    own = [str(int(name)) if by_number else name for name in classes]
    lacking = next((name for name in own if name not in number_of), None)
    if lacking is None:
        return [number_of[name] for name in own]
    if known in WITH_ALL or known in masks():
        raise DataError(
            f"data '{dataset}': class '{lacking}' is not one of ImageNet's {NUM_CLASSES} classes."
            " Take the folder out, or give the data another `name:`."
        )
    return None


def _check_number(encoded: Sequence[str], classes: object) -> None:
    if len(encoded) != NUM_CLASSES:
        raise DataError(
            f"classes '{classes}': {len(encoded)} names; `names: imagenet` of reader objectnet"
            " needs those of ImageNet's 1,000 classes."
        )
