"""What is known of each modality, in one object each; no other file compares their names.

`recipe.modality` defines what recipes may set for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.images import files as image_files
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.images.resize import fit
from vlkd_cli.data.meshes import files as mesh_files
from vlkd_cli.data.meshes.augment import CloudAugment
from vlkd_cli.data.meshes.picture import picture_of
from vlkd_cli.data.meshes.points import cloud_of_file, cloud_of_points
from vlkd_cli.data.meshes.view import MeshView
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.preprocessing import ImageInput, Inputs, InputSpec, MeshInput, TextInput, standardize
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from vlkd_cli.data.batch import View
    from vlkd_cli.data.images.augment import Augment

    AnyAugment = Augment | CloudAugment


class Modality(Protocol):
    """What towers of one modality have in common."""

    name: ModalityName
    suffixes: Sequence[str]
    """What names of its files end in, without the dot."""

    def read(self, sample: Sample, reader: Reader) -> None:
        """Give a sample what the reader has for this modality; nothing is decoded here.

        Raises:
            Broken: this one sample cannot be read.
        """
        ...

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        """Insist on what towers read of a sample.

        Args:
            texts: the names of the texts that are read.

        Raises:
            Broken: the sample lacks it.
        """
        ...

    def view(
        self, expected: InputSpec, augment: AnyAugment | None, text: str | None, *, copies: int = 1
    ) -> View:
        """What the loader prepares of each sample.

        Args:
            expected: what the tower declares, at the size of the view.
            augment: random changes in training; None where there are none.
            text: the name of the text that is read; None for the main one.
            copies: how often the changes are made again.
        """
        ...

    def rows(self, reader: Reader, positions: range) -> range:
        """Rows of these samples in a table of cached features of all of a reader's data."""
        ...

    def prepare(self, inputs: Inputs, expected: InputSpec) -> Inputs:
        """A batch of the loader as the backbone takes it, on the batch's device."""
        ...

    def load(self, items: Sequence[object], expected: InputSpec) -> Inputs:
        """Inputs of a tower from what a Python caller has.

        Raises:
            Broken: an item cannot be read.
        """
        ...

    def picture(self, reader: Reader, index: int) -> bytes | str | Image.Image | None:
        """What shows a sample on a page; None where only its text does."""
        ...


class ImageModality:
    """Pictures: files, encoded bytes, PIL images or `[H, W, 3]` uint8 arrays."""

    name: ModalityName = "image"
    suffixes: Sequence[str] = image_files.SUFFIXES

    def read(self, sample: Sample, reader: Reader) -> None:
        sample.image = reader.image(sample.index)

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        if sample.image is None:
            raise Broken(sample.problem or "has no image")

    def view(
        self, expected: InputSpec, augment: AnyAugment | None, text: str | None, *, copies: int = 1
    ) -> View:
        assert isinstance(expected, ImageInput) and not isinstance(augment, CloudAugment)
        return ImageView(expected, augment, copies=copies)

    def rows(self, reader: Reader, positions: range) -> range:
        return positions

    def prepare(self, inputs: Inputs, expected: InputSpec) -> Tensor:
        assert isinstance(inputs, Tensor) and isinstance(expected, ImageInput)
        return standardize(inputs, expected)

    def load(self, items: Sequence[object], expected: InputSpec) -> Tensor:
        assert isinstance(expected, ImageInput)
        return torch.stack([fit(_pixels(item), expected) for item in items])

    def picture(self, reader: Reader, index: int) -> bytes | str | Image.Image | None:
        return reader.image(index)


class TextModality:
    """Strings."""

    name: ModalityName = "text"
    suffixes: Sequence[str] = ()

    def read(self, sample: Sample, reader: Reader) -> None:
        sample.captions = reader.captions(sample.index)

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        for text in texts:
            first, stop = sample.spans.get(text, (0, len(sample.captions)))
            if first == stop or not sample.captions[sample.text(text)].strip():
                missing = "caption" if text == MAIN else f"text '{text}'"
                raise Broken(sample.problem or f"has no {missing}")

    def view(
        self, expected: InputSpec, augment: AnyAugment | None, text: str | None, *, copies: int = 1
    ) -> View:
        assert callable(expected)
        return TextView(expected, text or MAIN)

    def rows(self, reader: Reader, positions: range) -> range:
        return range(reader.caption_start(positions.start), reader.caption_start(positions.stop))

    def prepare(self, inputs: Inputs, expected: InputSpec) -> Inputs:
        return inputs

    def load(self, items: Sequence[object], expected: InputSpec) -> TextInput:
        assert callable(expected)
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) < len(items):
            raise Broken("is not a string")
        return expected(texts)

    def picture(self, reader: Reader, index: int) -> None:
        return None


class MeshModality:
    """Surfaces: files, or arrays of points `[P, 3]`, or `[P, 6]` with normals."""

    name: ModalityName = "mesh"
    suffixes: Sequence[str] = mesh_files.SUFFIXES

    def read(self, sample: Sample, reader: Reader) -> None:
        sample.mesh = reader.mesh(sample.index)

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        if sample.mesh is None:
            raise Broken(sample.problem or "has no mesh")

    def view(
        self, expected: InputSpec, augment: AnyAugment | None, text: str | None, *, copies: int = 1
    ) -> View:
        assert isinstance(expected, MeshInput)
        assert augment is None or isinstance(augment, CloudAugment)
        return MeshView(expected, augment, copies=copies)

    def rows(self, reader: Reader, positions: range) -> range:
        return positions

    def prepare(self, inputs: Inputs, expected: InputSpec) -> Inputs:
        return inputs

    def load(self, items: Sequence[object], expected: InputSpec) -> Inputs:
        assert isinstance(expected, MeshInput)
        clouds = [
            cloud_of_points(item) if isinstance(item, np.ndarray) else cloud_of_file(str(item))
            for item in items
        ]
        return MeshView(expected)([Sample(n, mesh=cloud) for n, cloud in enumerate(clouds)])

    def picture(self, reader: Reader, index: int) -> Image.Image | None:
        cloud = reader.mesh(index)
        return None if cloud is None else picture_of(cloud)


def _pixels(item: object) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item
    if isinstance(item, Path):
        item = str(item)
    if isinstance(item, bytes | str | Image.Image):
        return decode(item)
    raise Broken(f"is a {type(item).__name__} and not an image")


MODALITIES: dict[ModalityName, Modality] = {
    "image": ImageModality(),
    "text": TextModality(),
    "mesh": MeshModality(),
}


def modality_of_file(path: str) -> ModalityName | None:
    """What a file holds by its name; None where it has the suffix of none."""
    suffix = image_files.suffix_of(path)
    return next((name for name, own in MODALITIES.items() if suffix in own.suffixes), None)
