"""Labeled meshes with captions made of class names: folders of files, or a table of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import cached_arrays
from vlkd_cli.data.files.fingerprints import digest_files, digest_of, probed
from vlkd_cli.data.files.table import Table
from vlkd_cli.data.files.text_table import TextTable
from vlkd_cli.data.files.texts import clean_text
from vlkd_cli.data.images.files import existing_folder
from vlkd_cli.data.meshes.clouds import Clouds
from vlkd_cli.data.meshes.files import SUFFIXES, find_meshes
from vlkd_cli.data.readers.classification import listed_classes, readable
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.readers.templates import captions_of, templates_of
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import PositiveInt

_SPLITS = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
_FILE, _CLASS, _SPLIT = "file", "class", "split"
"""Columns of an index."""


class Meshes(Reader):
    """Meshes (OBJ, OFF, PLY, STL) with class labels; every mesh has one caption per template.

    Files are in folders of their class: CLASS/SPLIT/* as ModelNet's do, SPLIT/CLASS/* or CLASS/*;
    folders named train, val or test are splits. Meshes in no class folder have no label and no
    caption. Points are sampled once from each surface, evenly by area, centered and scaled into
    the unit sphere, and stored in the cache folder.

    Args:
        path: the folder.
        split: train, val or test; by default all meshes.
        index: a csv file, in the folder or elsewhere, with the columns `file` (relative to `path`)
            and `class`, and `split` if there are splits, instead of class folders.
        templates: a set's name (mesh, name, simple, photo) or a list with `{}` in each.
        classes: class names in label order, a list or a text file with one per line, where the
            data's own do not read well; their order is the alphabetical one of the data's own.
        points: sampled from each mesh; a tower reads some or all of them.
        up: the axis that points up in the files; ModelNet's is z.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"mesh", "text", "label"})

    def __init__(
        self,
        *,
        path: str,
        split: Literal["train", "val", "test"] | None = None,
        index: str | None = None,
        templates: str | list[str] = "mesh",
        classes: str | list[str] | None = None,
        points: PositiveInt = 2048,
        up: Literal["y", "z"] = "y",
    ) -> None:
        self.folder, self.split, self.points, self.up = path, split, points, up
        self.templates = templates_of(templates)
        root = existing_folder(path, "path")
        found = _in_folders(root) if index is None else _in_index(root, index)
        names = sorted({one.label for one in found} - {""})
        number = {name: k for k, name in enumerate(names)} | {"": -1}
        if split is not None:
            found = _of_split(found, split, path, index)
        self.classes = _class_names(names, classes)
        self._labels = np.array([number[one.label] for one in found], dtype=np.int64)
        self._files = TextTable([one.file for one in found])
        self._root = root
        self._clouds = Clouds([str(root / one.file) for one in found], points)
        counts = np.where(self._labels >= 0, len(self.templates), 0)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.has_captions = bool(self._starts[-1])
        _warn_of_empty(path, names, self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def image(self, index: int) -> None:
        return None

    def mesh(self, index: int) -> np.ndarray:
        cloud = self._clouds[index]
        if self.up == "z":
            # x stays, z becomes up, and y points to the back.
            cloud = cloud[:, [0, 2, 1, 3, 5, 4]] * np.array([1, 1, -1, 1, 1, -1], dtype=np.float32)
        return cloud

    def captions(self, index: int) -> Sequence[str]:
        label = self.label(index)
        if label < 0:
            return ()
        assert self.classes is not None and self.templates is not None
        return captions_of(self.classes[label], self.templates)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels.take(indices)

    def name(self, index: int) -> str:
        return str(self._root / self._files[index])

    def fingerprint(self) -> str:
        files = digest_files(self.name(index) for index in probed(len(self)))
        classes = list(self.classes or ())
        labels = self._labels.tobytes()
        settings = (classes, self.templates, self.points, self.up)
        return digest_of("meshes", self._files.digest(), files, labels, settings)

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        starts: np.ndarray = self._starts[indices]
        return starts


class _Found(NamedTuple):
    """A mesh: its path below the folder, its class and its split, each empty where it has none."""

    file: str
    label: str
    split: str


def _in_folders(root: Path) -> list[_Found]:
    files = find_meshes(root)
    if not files:
        raise DataError(f"data.path {root}: it has no meshes ({', '.join(SUFFIXES)}).")
    parts = [file.split("/")[:-1] for file in files]
    known = {name for names in _SPLITS.values() for name in names}
    if any(own and own[0].lower() in known for own in parts):
        split_at, class_at = 0, 1
    elif any(len(own) > 1 and own[1].lower() in known for own in parts):
        split_at, class_at = 1, 0
    else:
        split_at, class_at = -1, 0

    def part(own: Sequence[str], position: int) -> str:
        return own[position] if 0 <= position < len(own) else ""

    return [
        _Found(file, part(own, class_at), part(own, split_at).lower())
        for file, own in zip(files, parts, strict=True)
    ]


def _in_index(root: Path, index: str) -> list[_Found]:
    inside = root / os.path.expanduser(index)
    path = str(inside if inside.is_file() else os.path.expanduser(index))
    table = Table(path, sep=None, encoding="utf-8", quotes=True)
    columns = [table.column(_FILE, "index"), table.column(_CLASS, "index")]
    if _SPLIT in table.columns:
        columns.append(table.column(_SPLIT, "index"))
    table.index = cached_arrays(path, table.find, store=False)
    found = []
    for row in range(len(table)):
        try:
            fields = table.fields(row)
        except Broken as error:
            raise DataError(f"data.index: {error}. Repair the row.") from None
        file, label, *split = (clean_text(fields[column]).strip() for column in columns)
        if not file:
            raise DataError(f"data.index: {table.row_name(row)} names no file. Repair the row.")
        found.append(_Found(file, label, split[0].lower() if split else ""))
    if not any((root / one.file).is_file() for one in found[:3]):
        raise DataError(
            f"data.index {index}: its first meshes do not exist, e.g. {root / found[0].file}. Paths"
            " are relative to data.path."
        )
    return found


def _of_split(found: Sequence[_Found], split: str, path: str, index: str | None) -> list[_Found]:
    own = [one for one in found if one.split in _SPLITS[split]]
    if not own:
        there = sorted({one.split for one in found} - {""})
        has = f"it has {', '.join(there)}" if there else "it has no splits"
        key = f"path {path}" if index is None else f"index {index}"
        raise DataError(
            f"data.{key} has no meshes of data.split '{split}': {has}. Leave split out, or"
            " choose one that is there."
        )
    return own


def _class_names(names: Sequence[str], classes: str | list[str] | None) -> list[str] | None:
    given = None if classes is None else listed_classes(classes)
    if given is not None and len(given) != len(names):
        raise DataError(
            f"data.classes has {len(given)} names, the data {len(names)} classes:"
            f" {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}."
        )
    if not names:
        return None
    return given or [readable(name) for name in names]


def _warn_of_empty(path: str, names: Sequence[str], labels: np.ndarray) -> None:
    present = set(labels.tolist())
    empty = [name for number, name in enumerate(names) if number not in present]
    if empty:
        console.warn_once(
            f"data.path {path}: {len(empty)} of {len(names)} classes have no mesh in this split,"
            f" e.g. '{empty[0]}'."
        )
