"""Index files of ELEVATER's layouts: which images, in which order, with which labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.files.texts import parse_json, read_text, text_of
from vlkd_cli.data.images.files import find_folders, find_images
from vlkd_cli.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class Rows(NamedTuple):
    """Images in index order. Held in arrays, so that 262,144 rows stay small and workers share
    them."""

    paths: NDArray[np.bytes_]
    """`[N]` UTF-8; `archive.zip@member` or a path, below the data set's folder."""
    labels: NDArray[np.int32]
    """All labels, row after row."""
    starts: NDArray[np.int64]
    """`[N + 1]`; the labels of row i are `labels[starts[i]:starts[i + 1]]`."""

    def path(self, row: int) -> str:
        """Path of a row."""
        return bytes(self.paths[row]).decode("utf-8", "surrogatepass")

    def labels_of(self, row: int) -> tuple[int, ...]:
        """Labels of a row."""
        return tuple(self.labels[self.starts[row] : self.starts[row + 1]].tolist())


def read_lines(path: Path, num_classes: int, multi_label: bool) -> Rows:
    """An index of lines `image path label[,label...]`; the path may hold spaces, labels count from
    0, blank lines do not count.

    A line without a space is an image without labels, which multi-label data may have.

    Raises:
        DataError: with file and line.
    """

    def rows() -> Iterator[tuple[str, list[int]]]:
        for number, line in enumerate(_read_text(path).split("\n"), start=1):
            line = line.strip()
            if not line:
                continue
            image, _, text = line.rpartition(" ")
            if not image and multi_label:
                image, text = line, ""
            try:
                labels = [int(label) for label in text.split(",") if label]
            except ValueError:
                image = ""
            if not image:
                raise DataError(
                    f"{path}:{number}: expected 'image path label[,label...]', found"
                    f" '{line[:120]}'."
                )
            where = f"{path}:{number}"
            yield image, _checked(labels, num_classes, multi_label, where)

    return _rows(rows(), path)


def read_coco(path: Path, num_classes: int, multi_label: bool) -> tuple[Rows, list[str]]:
    """An index in COCO's form: rows are the images by id, columns the categories by id. Returns
    rows and class names.

    Raises:
        DataError: the file is not such an index, or its categories, images and annotations
            contradict each other.
    """
    try:
        tables = parse_json(_read_text(path))
        categories = sorted(tables["categories"], key=lambda category: category["id"])
        images = sorted(tables["images"], key=lambda image: image["id"])
        columns = {category["id"]: column for column, category in enumerate(categories)}
        labels: dict[object, list[int]] = {image["id"]: [] for image in images}
        for annotation in tables["annotations"]:
            labels[annotation["image_id"]].append(columns[annotation["category_id"]])
        if len(columns) < len(categories) or len(labels) < len(images):
            raise ValueError("an id occurs twice")
        names = [text_of(category["name"]) for category in categories]
        located = [
            (_coco_path(text_of(image["file_name"]), image.get("zip_file")), image["id"])
            for image in images
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: not a COCO index ({type(error).__name__}: {error}). Expected images,"
            " annotations and categories."
        ) from error
    if len(names) != num_classes:
        raise DataError(
            f"{path}: {len(names)} categories, and the data set has {num_classes} classes. The file"
            " belongs to another data set."
        )
    rows = (
        (image, _checked(labels[key], num_classes, multi_label, f"{path}: image id {key}"))
        for image, key in located
    )
    return _rows(rows, path), names


def _coco_path(file_name: str, archive: object) -> str:
    path = file_name
    if archive and ".zip@" not in file_name:
        path = f"{text_of(archive)}@{file_name}"
    if "\0" in path:
        raise ValueError("a path holds a NUL")
    return path


def read_folders(folder: Path, split: str, num_classes: int) -> tuple[Rows, str]:
    """The Chinese-CLIP copy: `split/<class id>/files` in torchvision's ImageFolder order, then, for
    the test part, in that of `index.json`.

    Returns:
        The rows and what their order is taken from.

    Raises:
        DataError: a folder is missing or is not a class id, or `index.json` is not an order of the
            rows.
    """
    part = folder / split
    if not part.is_dir():
        raise DataError(
            f"data set folder '{folder}' has no part '{split}': expected '{part}' with a folder"
            " per class id."
        )
    found: list[tuple[str, list[int]]] = []
    for name in find_folders(part):
        if not (name.isascii() and name.isdigit()) or int(name) >= num_classes:
            raise DataError(
                f"{part / name}: expected a class id from 0 to {num_classes - 1} as the folder's"
                " name."
            )
        images = [each for each in find_images(part / name) if each.lower().endswith(IMAGE_ENDINGS)]
        images.sort(key=os.path.split)  # folder after folder, as os.walk and so torchvision does
        found.extend((f"{split}/{name}/{image}", [int(name)]) for image in images)
    order_file = next(
        (file for file in (folder / "index.json", part / "index.json") if file.is_file()), None
    )
    if split != "test" or order_file is None:
        return _rows(found, part), "folders"
    try:
        order = [int(position) for position in parse_json(_read_text(order_file))]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{order_file}: expected a JSON list of row positions ({error})."
        ) from error
    if sorted(order) != list(range(len(found))):
        raise DataError(
            f"{order_file}: {len(order)} positions for {len(found)} images in '{part}'; expected"
            f" each of 0 to {len(found) - 1} once. Images are missing, or the file belongs to"
            " another copy."
        )
    return _rows([found[position] for position in order], part), "folders and index.json"


def read_label_map(path: Path, num_classes: int) -> list[str]:
    """Class names, one per line.

    Raises:
        DataError: the file is missing or has another number of names.
    """
    names = [line.strip() for line in _read_text(path).split("\n") if line.strip()]
    if len(names) != num_classes:
        raise DataError(
            f"{path}: {len(names)} class names, and the data set has {num_classes} classes. Take"
            " the data set's own file."
        )
    return names


def check_class_order(names: Sequence[str], official: Sequence[str], where: str) -> bool:
    """Whether the names on disk confirm the official columns; False if they are spelled too
    differently to decide.

    Raises:
        DataError: an official class is in another column.
    """
    own, expected = [_plain(name) for name in names], [_plain(name) for name in official]
    for column, name in enumerate(own):
        if (
            name != expected[column]
            and own.count(name) == 1
            and expected.count(name) == 1
            and own[expected.index(name)] != name
        ):
            raise DataError(
                f"{where}: class '{names[column]}' is number {column}, and ELEVATER's column for it"
                f" is {expected.index(name)} (column {column} is '{official[column]}'). The"
                " submission is positional: use the official class order."
            )
    return own == expected


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _checked(labels: list[int], num_classes: int, multi_label: bool, where: str) -> list[int]:
    if any(not 0 <= label < num_classes for label in labels):
        raise DataError(
            f"{where}: label {max(labels, key=abs)} is outside 0 to {num_classes - 1}. The index"
            " belongs to another data set."
        )
    if not multi_label and len(labels) != 1:
        raise DataError(f"{where}: {len(labels)} labels, and the data set has one per image.")
    return labels


def _rows(rows: Iterable[tuple[str, list[int]]], where: Path) -> Rows:
    paths, labels, counts = [], [], []
    for path, own in rows:
        paths.append(path.encode("utf-8", "surrogatepass"))
        labels.extend(own)
        counts.append(len(own))
    if not paths:
        raise DataError(f"{where}: lists no images.")
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Rows(np.array(paths), np.array(labels, dtype=np.int32), starts)


def _read_text(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path} is missing. Put the data set's own file there.")
    return read_text(path)
