"""What moves through a step: samples as a reader gives them, and batches as towers take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from vlkd_cli.data.caption_choice import Sources, chosen
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.preprocessing import Inputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image


@dataclass
class Sample:
    """One image or mesh with its texts, for one row of a batch.

    `image` holds encoded bytes, a file's path, or a rendered PIL image; it is decoded once,
    whatever the number of views.
    """

    index: int
    image: bytes | str | Image.Image | None = None
    captions: Sequence[str] = ()
    """All texts of the sample, its captions proper and those of every other name."""
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """First and past-the-last position of the texts of a name; a name that is not there has all."""
    choice: int = 0
    """A random number of 63 bits that selects one of several wordings of a text; the same for all
    names."""
    first_row: int = 0
    """Row of its first text in a table of all texts of the reader."""
    label: int = -1
    targets: Sequence[float] = ()
    """Its numbers, where it comes out of a stream; those of other samples are read by row."""
    name: str = ""
    """What a message calls it, e.g. the file's path."""
    sources: Sources | None = None
    """Where its captions proper come from; None: each is as likely as any other."""
    seed: int = 0
    """Seed of the augmentation: depends on the run's seed, the epoch and the position only."""
    draw: int = 0
    """Which of the stored augmentations of this row is shown, see `loading.draws`."""
    draw_seed: int = 0
    """Seed of that augmentation: depends on its number and the row only."""
    salvage: bool = False
    """Whether an image that is cut off is taken as far as it goes."""
    problem: str = ""
    """Why its image, mesh or captions are missing, where the reader knows."""
    num_samples: int = 1
    """Number of samples that it represents: for a shard of a stream that cannot be read, those
    that are lost."""
    mesh: np.ndarray | None = None
    """Points on its surface with their normals, `[P, 6]` float32."""

    def text(self, name: str) -> int:
        """Position of the chosen wording of a text."""
        first, stop = self.spans.get(name, (0, len(self.captions)))
        if name == MAIN and self.sources is not None and stop > first:
            return first + chosen(self.choice, self.sources)
        return first + self.choice % max(stop - first, 1)

    def wording(self, name: str) -> str:
        """The chosen wording of a text, empty where the sample has none."""
        first, stop = self.spans.get(name, (0, len(self.captions)))
        return self.captions[self.text(name)] if first < stop else ""


NO_TARGET = "its target is not a finite number"
"""Why a sample without one of its numbers is broken."""


class Broken(Exception):
    """One sample that cannot be read; the text is the reason, without the sample's name. The
    loader replaces it by another."""


class Skipped(NamedTuple):
    """A sample that could not be read and was replaced by another."""

    name: str
    reason: str

    @property
    def num_samples(self) -> int:
        """How many samples that is."""
        return 1


class Lost(NamedTuple):
    """A shard, or a part of one, that cannot be read and is left out, with the number of samples it
    held as far as that can be estimated."""

    name: str
    reason: str
    num_samples: int


class View(Protocol):
    """What one tower sees of the samples; runs in a loader worker."""

    @property
    def needs(self) -> frozenset[str]:
        """What of a sample it reads: of image, text, mesh."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Inputs: ...


@dataclass
class Batch:
    """What one step reads.

    Args:
        inputs: by "tower" or "tower@input": uint8 images `[B, 3, H, W]`, or `[B, V, 3, H, W]` where
            a view has V > 1 pictures; points of meshes `[B, N, 3]` or `[B, V, N, 3]`; a TextInput;
            or cached features `[B, D]`.
        indices: `[B]` int64, positions in the data set.
        labels: `[B]` int64, -1 where a sample has none.
        skipped: samples that could not be read and were replaced, and shards of a stream that
            could not.
        hidden: by view, `[B, T]` or `[B, V, T]` bool like its pictures, True for the positions of
            their grid that are hidden; views without a mask have no entry.
        targets: `[B, N]`, or None where samples have none.
        columns: by name, `[B]` entries of the columns that distillers compare.
    """

    inputs: dict[str, Inputs]
    indices: Tensor
    labels: Tensor
    skipped: list[Skipped | Lost] = field(default_factory=list)
    hidden: dict[str, Tensor] = field(default_factory=dict)
    targets: Tensor | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies of pinned memory do not block."""

        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Page-locked copy, for the loader's pinning thread."""
        return self.each(lambda tensor: tensor.pin_memory())

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch."""
        for value in self.inputs.values():
            yield from value.values() if isinstance(value, dict) else (value,)
        yield from (self.indices, self.labels, *self.hidden.values(), *self.columns.values())
        if self.targets is not None:
            yield self.targets

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor replaced by what `change` makes of it."""

        def changed(value: Inputs) -> Inputs:
            if isinstance(value, dict):
                return {key: change(tensor) for key, tensor in value.items()}
            return change(value)

        return Batch(
            {key: changed(value) for key, value in self.inputs.items()},
            change(self.indices),
            change(self.labels),
            self.skipped,
            {view: change(hidden) for view, hidden in self.hidden.items()},
            None if self.targets is None else change(self.targets),
            {name: change(column) for name, column in self.columns.items()},
        )
