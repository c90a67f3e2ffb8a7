"""Items that a Python caller has at hand, as a data set of one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from vlkd_cli.data.meshes.points import cloud_of_file, cloud_of_points
from vlkd_cli.data.readers.pictures import Pictures
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import ModalityName


class Meshes(Reader):
    """Meshes by position: paths, or arrays of points `[P, 3]`, or `[P, 6]` with normals."""

    def __init__(self, items: Sequence[str | np.ndarray]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int) -> None:
        return None

    def mesh(self, index: int) -> np.ndarray:
        item = self._items[index]
        return cloud_of_points(item) if isinstance(item, np.ndarray) else cloud_of_file(item)

    def name(self, index: int) -> str:
        item = self._items[index]
        return item if isinstance(item, str) else f"item {index}"

    def fingerprint(self) -> str:
        return "items of one call"


def given_images(items: Sequence[object], tower: str) -> Reader:
    """Paths, encoded bytes, PIL images, or uint8 arrays `[H, W, 3]` or `[H, W]`.

    Args:
        tower: the name of the tower that encodes them, for messages.

    Raises:
        DataError: an item is of another kind.
    """
    return Pictures([_picture(item, n, tower) for n, item in enumerate(items)])


def given_meshes(items: Sequence[object], tower: str) -> Reader:
    """Paths, or arrays of points; see `given_images`."""
    return Meshes([_mesh(item, n, tower) for n, item in enumerate(items)])


GIVEN: dict[ModalityName, Callable[[Sequence[object], str], Reader]] = {
    "image": given_images,
    "mesh": given_meshes,
}
"""What reads the items of a modality that has views."""


def is_points(item: np.ndarray) -> bool:
    """Whether an array holds points of a mesh, and not pixels."""
    return item.ndim == 2 and item.shape[1] in (3, 6) and np.issubdtype(item.dtype, np.floating)


def _mesh(item: object, number: int, tower: str) -> str | np.ndarray:
    if isinstance(item, (str, os.PathLike)):
        return str(os.fspath(item))
    if isinstance(item, np.ndarray):
        return item
    raise DataError(
        f"item {number} is a {type(item).__name__}; tower '{tower}' takes paths of meshes, or"
        " arrays of points [P, 3]."
    )


def _picture(item: object, number: int, tower: str) -> bytes | str | Image.Image:
    if isinstance(item, (str, bytes, Image.Image)):
        return item
    if isinstance(item, os.PathLike):
        return str(os.fspath(item))
    if isinstance(item, np.ndarray):
        if item.dtype == np.uint8 and (item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3)):
            return Image.fromarray(np.ascontiguousarray(item))
        raise DataError(
            f"item {number} is an array of {item.dtype} {list(item.shape)}; tower '{tower}' takes"
            " uint8 arrays [height, width, 3]."
        )
    raise DataError(
        f"item {number} is a {type(item).__name__}; tower '{tower}' takes paths, bytes, PIL images"
        " or arrays."
    )
