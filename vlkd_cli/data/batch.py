"""What moves through a step: samples as a reader gives them, and batches as towers take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from vlkd_cli.preprocessing import TextInput

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass
class Sample:
    """One image with its captions, drawn for one batch row.

    `image` holds encoded bytes, a file's path, or a drawn PIL image; it is decoded once, whatever
    the number of views.
    """

    index: int
    image: bytes | str | Image.Image | None
    captions: Sequence[str]
    caption: int = 0
    """Which of the captions this draw uses."""
    caption_row: int = 0
    """Row of that caption in a table of all captions of the reader."""
    label: int = -1
    name: str = ""
    """What a message calls it, e.g. the file's path."""
    seed: int = 0
    """Seed of this draw's augmentation: depends on the run's seed, the epoch and the position
    only."""
    salvage: bool = False
    """Whether an image that is cut off is taken as far as it goes."""
    problem: str = ""
    """Why its image or its captions are missing, where the reader knows."""


class Broken(Exception):
    """One sample that cannot be read; the text is the reason, without the sample's name. The loader
    puts another in its place."""


class Skipped(NamedTuple):
    """A sample that could not be read and was replaced by another."""

    name: str
    reason: str


class View(Protocol):
    """What one tower sees of the samples; runs in a loader worker."""

    needs_image: bool
    needs_captions: bool

    def __call__(self, samples: Sequence[Sample]) -> Tensor | TextInput: ...


@dataclass
class Batch:
    """Inputs per "tower" or "tower@view": uint8 images `[B, 3, H, W]`, a TextInput, or stored
    features `[B, D]`."""

    inputs: dict[str, Tensor | TextInput]
    indices: Tensor
    labels: Tensor
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies of pinned memory do not block."""

        def move(value: Tensor | TextInput) -> Tensor | TextInput:
            if isinstance(value, Tensor):
                return value.to(device, non_blocking=True)
            return {key: tensor.to(device, non_blocking=True) for key, tensor in value.items()}

        inputs = {key: move(value) for key, value in self.inputs.items()}
        return Batch(
            inputs,
            self.indices.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.skipped,
        )

    def pin_memory(self) -> Batch:
        """Page-locked copy, for the loader's pinning thread."""

        def pin(value: Tensor | TextInput) -> Tensor | TextInput:
            return (
                value.pin_memory()
                if isinstance(value, Tensor)
                else {key: tensor.pin_memory() for key, tensor in value.items()}
            )

        inputs = {key: pin(value) for key, value in self.inputs.items()}
        return Batch(inputs, self.indices.pin_memory(), self.labels.pin_memory(), self.skipped)
