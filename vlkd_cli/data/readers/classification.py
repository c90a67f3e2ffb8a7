"""Labeled images with captions made of class names: data sets of torchvision by name, or folders
of images."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from PIL import Image

from vlkd_cli import console
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.class_numbers import by_size
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.files.texts import clean_text, read_entries
from vlkd_cli.data.images.files import existing_folder, find_folders, find_images
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.templates import captions_of, templates_of
from vlkd_cli.errors import DataError

_SAME_SPLIT = {"val": ("val", "valid", "validation"), "test": ("test",), "train": ("train",)}


class Classification(Reader):
    """Images with class labels; every image has one caption per template.

    Either `dataset` names a class of torchvision.datasets, or `path` a folder with one sub-folder
    of images per class (below a folder named like the split, if there is one), numbered in
    alphabetical order, folders whose names are numbers by size.

    Args:
        dataset: e.g. CIFAR10, MNIST, Flowers102, OxfordIIITPet.
        root: folder of torchvision's data sets; by default `data`.
        path: folder of class folders.
        split: train, val or test; by default the data's own default (training, or all where there
            are not any splits).
        download: let torchvision fetch the data set if it is not there.
        templates: a set's name (name, simple, photo, open_clip:imagenet, open_clip:simple) or a
            list with `{}` in each.
        classes: class names in label order, a list or a text file with one per line, where the
            data's own do not read well.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "label"})

    def __init__(
        self,
        *,
        dataset: str | None = None,
        root: str | None = None,
        path: str | None = None,
        split: Literal["train", "val", "test"] | None = None,
        download: bool = False,
        templates: str | list[str] = "simple",
        classes: str | list[str] | None = None,
    ) -> None:
        if (dataset is None) == (path is None):
            raise DataError(
                "reader 'classification' takes either 'dataset' (a name of torchvision.datasets) or"
                " 'path' (a folder)."
            )
        if path is not None and (root is not None or download):
            raise DataError(
                f"data.{'download' if download else 'root'} has no effect with data.path. Leave it"
                " out."
            )
        self.split = split
        self.templates = templates_of(templates)
        self._source: _Source = (
            _Folders(path, split)
            if path is not None
            else _TorchVision(str(dataset), root or "data", split, download)
        )
        own = self._source.class_names
        self.classes = (
            listed_classes(classes) if classes is not None else [readable(name) for name in own]
        )
        if own and len(self.classes) != len(own):
            raise DataError(
                f"data.classes has {len(self.classes)} names, the data {len(own)} classes."
            )
        self._labels = self._source.labels
        if not len(self._labels):
            raise DataError(
                f"data.{'path' if path is not None else 'dataset'} {path or dataset}: it has no"
                " images."
            )
        highest = int(self._labels.max())
        if highest >= len(self.classes):
            raise DataError(
                f"{dataset or path} has labels up to {highest} and {len(self.classes)} class names."
                " Give data.classes."
            )

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> str | Image.Image:
        return self._source.image(index)

    def captions(self, index: int) -> Sequence[str]:
        assert self.classes is not None and self.templates is not None
        return captions_of(self.classes[int(self._labels[index])], self.templates)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels.take(indices)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def fingerprint(self) -> str:
        return digest_of(
            "classification",
            self._source.digest(),
            list(self.classes or ()),
            self.templates,
            self._labels.tobytes(),
        )

    def caption_start(self, index: int) -> int:
        return index * len(self.templates or ())

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(indices) * len(self.templates or ())


class _Source:
    """Where images and labels come from."""

    class_names: Sequence[str]
    labels: np.ndarray

    def image(self, index: int) -> str | Image.Image:
        raise NotImplementedError

    def name(self, index: int) -> str:
        raise NotImplementedError

    def digest(self) -> str:
        raise NotImplementedError


class _Folders(_Source):
    def __init__(self, path: str, split: str | None) -> None:
        folder = existing_folder(path, "path")
        if split is not None:
            below = [folder / name for name in _SAME_SPLIT[split] if (folder / name).is_dir()]
            if not below:
                raise DataError(
                    f"data.path {path} has no folder '{split}' for data.split. Leave split out, or"
                    " name the folder itself."
                )
            folder = below[0]
        images = [image for image in find_images(folder) if "/" in image]
        self.class_names = find_folders(folder)
        # Folders 0, 1, 2, ..., 10 are numbers of classes (ImageNet-V2), not words.
        if all(name.isascii() and name.isdigit() for name in self.class_names):
            self.class_names = sorted(self.class_names, key=by_size)
        number = {name: k for k, name in enumerate(self.class_names)}
        self.labels = np.array(
            [number[image.partition("/")[0]] for image in images], dtype=np.int64
        )
        self._folder, self._images = folder, TextTable(images)
        if not images:
            raise DataError(
                f"data.path {path}: no image in any sub-folder; each class is a folder of images."
            )
        empty = [
            self.class_names[k]
            for k in np.flatnonzero(np.bincount(self.labels, minlength=len(self.class_names)) == 0)
        ]
        if empty:
            console.warn_once(
                f"data.path {path}: {len(empty)} of {len(self.class_names)} classes have no image,"
                f" e.g. '{empty[0]}'. They count as classes; delete their folders if they are not."
            )

    def image(self, index: int) -> str:
        return self.name(index)

    def name(self, index: int) -> str:
        return str(self._folder / self._images[index])

    def digest(self) -> str:
        return digest_of(
            self._images.digest(),
            digest_files(self.name(index) for index in probed(len(self._images))),
        )


class _Pairs(Protocol):
    """A data set of torchvision: images with their classes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[object, int]: ...


class _TorchVision(_Source):
    def __init__(self, dataset: str, root: str, split: str | None, download: bool) -> None:
        from torchvision import datasets

        if dataset not in datasets.__all__:
            raise DataError(
                f"data.dataset '{dataset}': torchvision.datasets has no such"
                f" class.{did_you_mean(dataset, datasets.__all__)}"
            )
        kind = getattr(datasets, dataset)
        accepted = inspect.signature(kind).parameters
        keys: dict[str, object] = {"download": download} if "download" in accepted else {}
        root = os.path.expanduser(root)
        if not os.path.isdir(root) and not download:
            raise DataError(
                f"data.root {root}: no such folder. Name the folder that holds {dataset}, or set"
                " data.download: true."
            )
        self._data = _constructed(
            kind, dataset, Path(root), _split_keys(dataset, accepted, split), keys
        )
        self._name = f"{dataset} {split or ''}".strip()
        self.labels = np.fromiter(_labels(self._data), dtype=np.int64, count=len(self._data))
        names = (
            getattr(self._data, "classes", None) or getattr(self._data, "categories", None) or []
        )
        self.class_names = [name[0] if isinstance(name, tuple) else str(name) for name in names]

    def image(self, index: int) -> Image.Image:
        try:
            image = self._data[index][0]
        except Exception as error:  # what Pillow's decoders raise has no common base
            raise Broken(str(error) or type(error).__name__) from None
        assert isinstance(image, Image.Image)
        return image

    def name(self, index: int) -> str:
        return f"{self._name} image {index}"

    def digest(self) -> str:
        stored = getattr(self._data, "data", None)
        if stored is not None and hasattr(stored, "shape"):
            import hashlib

            return hashlib.blake2b(
                np.ascontiguousarray(stored).tobytes(), digest_size=16
            ).hexdigest()
        pixels = (
            np.asarray(self.image(index)).tobytes()
            for index in list(probed(len(self.labels)))[:: max(1, len(self.labels) // 200)]
        )
        return digest_of(self._name, len(self.labels), [digest_of(values) for values in pixels])


def _split_keys(
    dataset: str, accepted: Container[str], split: str | None
) -> list[dict[str, object]]:
    """Keyword arguments that may mean this split to this class, the likeliest first."""
    if split is None:
        return [{}]
    if "split" in accepted and dataset != "EMNIST":
        return [{"split": name} for name in _SAME_SPLIT[split]]
    if "image_set" in accepted:
        return [{"image_set": name} for name in _SAME_SPLIT[split]]
    if "train" in accepted:
        if split == "val":
            raise DataError(f"data.split 'val': {dataset} has only train and test.")
        return [{"train": split == "train"}]
    raise DataError(
        f"data.split '{split}': {dataset} has no splits in torchvision. Leave split out."
    )


def _constructed(
    kind: Callable[..., _Pairs],
    dataset: str,
    root: Path,
    splits: list[dict[str, object]],
    keys: dict[str, object],
) -> _Pairs:
    problem: Exception | None = None
    for split in splits:
        try:
            return kind(root, **split, **keys)
        except ValueError as error:  # a split of another name
            problem = error
        except RuntimeError as error:
            raise DataError(
                f"{dataset} is not in data.root {root} ({str(error).partition(chr(10))[0]}). Set"
                " data.download: true to fetch it."
            ) from None
        except Exception as error:  # damaged files raise whatever its parsers stumble over
            raise DataError(
                f"{dataset} in data.root {root} cannot be read ({type(error).__name__}: {error})."
                " Fetch it again."
            ) from None
    raise DataError(
        f"{dataset} in data.root {root} cannot be read ({str(problem).partition(chr(10))[0]})."
    )


def _labels(data: _Pairs) -> Iterator[int]:
    """Labels without decoding images, if the class stores them in one of the attributes that
    torchvision uses."""
    for name in ("targets", "labels", "_labels", "y"):
        stored = getattr(data, name, None)
        if stored is not None and len(stored) == len(data):
            return (int(label) for label in stored)
    for name in ("samples", "_samples", "imgs"):
        stored = getattr(data, name, None)
        if stored is not None and len(stored) == len(data) and isinstance(stored[0][1], int):
            return (int(label) for _, label in stored)
    return (int(data[index][1]) for index in range(len(data)))


def listed_classes(classes: str | Sequence[str]) -> list[str]:
    """Class names as the key `classes` gives them: a list, or a file with one per line.

    Raises:
        DataError: there is no such file.
    """
    if not isinstance(classes, str):
        return [clean_text(name) for name in classes]
    if not os.path.exists(os.path.expanduser(classes)):
        raise DataError(
            f"data.classes {classes}: no such file. It is a list, or a text file with one name per"
            " line."
        )
    return read_entries(os.path.expanduser(classes))


def readable(name: str) -> str:
    """The name of a class out of that of its folder."""
    return clean_text(name).replace("_", " ").strip()
