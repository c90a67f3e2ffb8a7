"""What every reader is: images, captions and labels by position, or (for streams) in an order of
their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlkd_cli.data.batch import Sample

if TYPE_CHECKING:
    from PIL import Image


class Reader:
    """Random access to a data set: position -> image, captions, label.

    A subclass takes its recipe keys as keyword-only constructor arguments; it must survive
    pickling, and hold large tables memory-mapped so that workers share them. Every reader takes
    `split` ("train", "val", "test") where its data has splits.
    """

    classes: Sequence[str] | None = None
    """Class names in label order, for labelled data."""
    templates: Sequence[str] | None = None
    """Prompt templates that the data set brings along, each with one `{}`."""

    multi_label: bool = False
    """Whether an image may have several labels, or none."""

    salvages: bool = False
    """Whether an image file that is cut off counts as an image, grey where the rest is missing, and
    not as broken."""

    def opened(self) -> Reader | StreamReader:
        """What to read from: itself, or a stream where the data turns out to allow nothing else."""
        return self

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> bytes | str | Image.Image | None:
        """Encoded bytes, a local path, or a drawn picture; nothing is decoded here.

        Raises:
            Broken: this one sample cannot be read.
        """
        raise NotImplementedError

    def captions(self, index: int) -> Sequence[str]:
        """All captions of the image at this position, without touching the image."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Class of the image, or -1."""
        return -1

    def labels(self, index: int) -> Sequence[int]:
        """All classes of the image, for multi-label data."""
        label = self.label(index)
        return () if label < 0 else (label,)

    def name(self, index: int) -> str:
        """What a message calls the sample."""
        return f"sample {index}"

    def fingerprint(self) -> str:
        """Changes whenever the images, captions or their order do; the key under which features are
        kept."""
        raise NotImplementedError

    def caption_start(self, index: int) -> int:
        """Number of captions before those of this position; the row of its first caption in a table
        of all captions.

        `caption_start(len(reader))` is the number of captions.
        """
        raise NotImplementedError

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        """`caption_start` of many positions at once, int64."""
        return np.fromiter(
            (self.caption_start(int(index)) for index in indices),
            dtype=np.int64,
            count=len(indices),
        )

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        """`label` of many positions at once, int64."""
        return np.fromiter(
            (self.label(int(index)) for index in indices), dtype=np.int64, count=len(indices)
        )

    @property
    def num_captions(self) -> int:
        """Captions in total."""
        return self.caption_start(len(self))


class StreamReader:
    """A data set that can only be read in its own order (remote shards). Not cacheable; a resumed
    epoch reads up to its position again."""

    samples_per_epoch: int

    def stream(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        """The samples of one of `num_shards` disjoint shares (rank x worker) in an order that
        depends on seed and epoch only."""
        raise NotImplementedError
