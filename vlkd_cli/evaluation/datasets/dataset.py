"""The data of a suite: a reader, what it is called, and which part of it this is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.places import found_alone, found_by_name, name_of_path
from vlkd_cli.evaluation.results import DataIdentity
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


@dataclass(frozen=True)
class Dataset:
    """Data with the names that a result reports."""

    reader: Reader
    name: str
    split: str

    @cached_property
    def row_hash(self) -> str:
        """Digest of images, captions and their order, for which files are read once."""
        return self.reader.fingerprint()

    def identity(self, classes: Sequence[str] | None = None) -> DataIdentity:
        """What a result records about it.

        Args:
            classes: names in label order, where the suite uses labels.
        """
        hashes = {"rows": self.row_hash}
        if classes is None:
            return DataIdentity(self.name, self.split, hashes)
        hashes["classes"] = class_hash(classes)
        return DataIdentity(self.name, self.split, hashes, len(classes))


def open_dataset(subject: Subject, data: DataSource, *, split: str | None = None) -> Dataset:
    """The data of a suite's `data:` key; by default the only data set below the data root.

    Args:
        subject: whose `data_root` data sets are looked up in.
        data: `{reader: NAME, ...}` as in a recipe's `data:`, and optionally `name`, what the result
            calls it; or `{dataset: NAME, ...}` or just the name of a data set below the data root.
        split: another part of the same data.

    Raises:
        DataError: see the reader; also data that can only be streamed, and no data or several
            where one is looked for.
    """
    open_ones: dict[str, Dataset] = subject.tables.datasets
    key = json.dumps([data, split, str(subject.data_root)], sort_keys=True, default=str)
    if key not in open_ones:
        open_ones[key] = _open(subject, data, split)
    return open_ones[key]


def _open(subject: Subject, data: DataSource, split: str | None) -> Dataset:
    from vlkd_cli.data.readers.open import open_reader

    if data is None:
        data = found_alone(subject.data_root)
    keys = {"dataset": data} if isinstance(data, str) else dict(data)
    name = str(keys.pop("name", "") or _name(keys))
    if "reader" not in keys and "readers" not in keys:
        keys = found_by_name(keys, subject.data_root)
    if split is not None:
        keys["split"] = split
    reader = open_reader(keys)
    if not isinstance(reader, Reader):
        raise DataError(
            f"data '{name}' can only be read as a stream; evaluation needs random access to the"
            " samples. Use local files."
        )
    if not len(reader):
        raise DataError(f"data '{name}' holds no samples.")
    return Dataset(reader, name, str(keys.get("split", getattr(reader, "split", "")) or "all"))


class LabeledPair(NamedTuple):
    """Images to learn from and images to be judged by, with one list of classes."""

    train: Dataset
    test: Dataset
    classes: list[str]
    train_labels: Tensor
    test_labels: Tensor

    def identity(self) -> DataIdentity:
        """What a result records about both parts."""
        judged = self.test.identity(self.classes)
        return judged._replace(hashes={**judged.hashes, "train_rows": self.train.row_hash})


def labeled_pair(subject: Subject, data: DataSource, train_data: DataSource) -> LabeledPair:
    """The two parts of a suite that learns from labels.

    Args:
        subject: see `open_dataset`.
        data: what is judged.
        train_data: what is learned from; by default the same data with `split: train`.

    Raises:
        DataError: the two have different classes, or they are the same images.
    """
    test = open_dataset(subject, data)
    if train_data is not None:
        train = open_dataset(subject, train_data)
    else:
        try:
            train = open_dataset(subject, data, split="train")
        except DataError as error:
            raise DataError(
                f"data '{test.name}': no training images: {error} Or give `train_data:`."
            ) from error
    if train.row_hash == test.row_hash:
        raise DataError(
            f"data '{test.name}': training and test images are the same. Give `train_data:` or"
            " another `split:`."
        )
    classes = named_classes(test)
    if class_hash(named_classes(train)) != class_hash(classes):
        raise DataError(
            f"data '{train.name}' ({train.split}) and '{test.name}' ({test.split}) have different"
            " classes or class orders."
        )
    return LabeledPair(
        train, test, classes, labels_of(train.reader, classes), labels_of(test.reader, classes)
    )


def named_classes(dataset: Dataset) -> list[str]:
    """Class names in label order; numbers where the data names none."""
    if dataset.reader.classes:
        return list(dataset.reader.classes)
    most = max(
        max(dataset.reader.labels(index), default=-1) for index in range(len(dataset.reader))
    )
    if most < 0:
        raise DataError(f"data '{dataset.name}' has no labels.")
    return [str(label) for label in range(most + 1)]


def labels_of(reader: Reader, names: Sequence[str]) -> Tensor:
    """The label of every image, `[N]` int64.

    Raises:
        DataError: an image has no label, or one beyond the class names.
    """
    labels = torch.from_numpy(np.asarray(reader.labels_of(np.arange(len(reader))), dtype=np.int64))
    wrong = ((labels < 0) | (labels >= len(names))).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"{reader.name(first)}: label {int(labels[first])} is not one of the {len(names)}"
            f" classes (0 to {len(names) - 1})."
        )
    return labels


def captions_at(reader: Reader, index: int, suite: str) -> list[str]:
    """The captions of an image that a suite needs some of; its other named texts do not count.

    Raises:
        DataError: it has none, or they cannot be read.
    """
    try:
        first, last = reader.text_span(index)
        own = [caption for caption in reader.captions(index)[first:last] if caption.strip()]
    except Broken as error:
        raise DataError(
            f"{reader.name(index)}: {error}. Repair it or take it out of the data."
        ) from None
    if not own:
        raise DataError(
            f"{reader.name(index)}: has no caption; {suite} needs one for every image. Leave it out"
            " or give it one."
        )
    return own


def class_hash(classes: Sequence[str]) -> str:
    """Digest of class names and their order."""
    return hashlib.sha256("\n".join(classes).encode()).hexdigest()[:16]


def _name(keys: Mapping[str, object]) -> str:
    """What to call data that has no name: the data set, else the file or folder, else the
    reader."""
    for key in ("dataset", "path", "root", "captions", "annotations"):
        value = keys.get(key)
        if isinstance(value, str) and value:
            return value if key == "dataset" else name_of_path(value)
    return str(keys.get("reader", "data"))
