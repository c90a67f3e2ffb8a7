"""What is known of each modality, in one object each; no other file compares their names.

`recipe.modality` says what recipes may ask of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.images.resize import fit
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.preprocessing import ImageInput, InputSpec, TextInput, standardize
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from vlkd_cli.data.batch import View
    from vlkd_cli.data.images.augment import Augment


class Modality(Protocol):
    """What towers of one modality have in common."""

    name: ModalityName

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
        self, expected: InputSpec, augment: Augment | None, text: str | None, *, copies: int = 1
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

    def prepare(self, inputs: object, expected: InputSpec) -> object:
        """A batch of the loader as the backbone takes it, on the batch's device."""
        ...

    def load(self, items: Sequence[Any], expected: InputSpec) -> Any:
        """Inputs of a tower from what a Python caller has.

        Raises:
            Broken: a picture cannot be read.
        """
        ...


class ImageModality:
    """Pictures: files, encoded bytes, PIL images or `[H, W, 3]` uint8 arrays."""

    name: ModalityName = "image"

    def read(self, sample: Sample, reader: Reader) -> None:
        sample.image = reader.image(sample.index)

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        if sample.image is None:
            raise Broken(sample.problem or "has no image")

    def view(
        self, expected: InputSpec, augment: Augment | None, text: str | None, *, copies: int = 1
    ) -> View:
        assert isinstance(expected, ImageInput)
        return ImageView(expected, augment, copies=copies)

    def rows(self, reader: Reader, positions: range) -> range:
        return positions

    def prepare(self, inputs: Any, expected: InputSpec) -> Tensor:
        assert isinstance(expected, ImageInput)
        return standardize(inputs, expected)

    def load(self, items: Sequence[Any], expected: InputSpec) -> Tensor:
        assert isinstance(expected, ImageInput)
        return torch.stack([fit(_pixels(item), expected) for item in items])


class TextModality:
    """Strings."""

    name: ModalityName = "text"

    def read(self, sample: Sample, reader: Reader) -> None:
        sample.captions = reader.captions(sample.index)

    def require(self, sample: Sample, texts: Sequence[str]) -> None:
        for text in texts:
            first, stop = sample.spans.get(text, (0, len(sample.captions)))
            if first == stop or not sample.captions[sample.text(text)].strip():
                missing = "caption" if text == MAIN else f"text '{text}'"
                raise Broken(sample.problem or f"has no {missing}")

    def view(
        self, expected: InputSpec, augment: Augment | None, text: str | None, *, copies: int = 1
    ) -> View:
        assert not isinstance(expected, ImageInput)
        return TextView(expected, text or MAIN)

    def rows(self, reader: Reader, positions: range) -> range:
        return range(reader.caption_start(positions.start), reader.caption_start(positions.stop))

    def prepare(self, inputs: Any, expected: InputSpec) -> TextInput:
        prepared: TextInput = inputs
        return prepared

    def load(self, items: Sequence[Any], expected: InputSpec) -> TextInput:
        assert not isinstance(expected, ImageInput)
        return expected(list(items))


def _pixels(item: Any) -> np.ndarray:
    if isinstance(item, np.ndarray):
        return item
    return decode(str(item) if isinstance(item, Path) else item)


MODALITIES: dict[ModalityName, Modality] = {"image": ImageModality(), "text": TextModality()}
