"""What every reader is: images, captions and labels by position, or (for streams) in an order of
their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vlkd_cli.data.batch import Lost, Sample
from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.loading.order import Blocks
from vlkd_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


class Offers:
    """What a reader offers, read from its class without opening any data: words out of image,
    text, mesh, label, target, choices, group, languages."""

    offers: ClassVar[frozenset[str]] = frozenset()
    """What it always offers."""
    offers_by_key: ClassVar[Mapping[str, str]] = {}
    """What it offers where a key is not null."""
    has_columns: ClassVar[bool] = False
    """Whether `column` gives something."""
    column_names: ClassVar[tuple[str, ...]] = ()
    """The columns, where they do not depend on the data."""
    text_views: ClassVar[tuple[str, ...]] = ()
    """Names of texts that it always has, other than the captions."""
    text_views_by_key: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names of further texts that it has where a key is not null."""
    no_effect_with: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Keys that have no effect where another key, named first, is not null."""


class Reader(Offers):
    """Random access to a data set: position -> image, mesh, captions, label.

    A subclass takes its recipe keys as keyword-only constructor arguments; it must survive
    pickling, and hold large tables memory-mapped so that workers share them. Every reader takes
    `split` ("train", "val", "test") where its data has splits.
    """

    classes: Sequence[str] | None = None
    """Class names in label order, for labeled data."""
    templates: Sequence[str] | None = None
    """Prompt templates of the data set, each with one `{}`."""

    multi_label: bool = False
    """Whether an image may have several labels, or none."""

    salvages: bool = False
    """Whether an image file that is cut off counts as an image, gray where the rest is missing, and
    not as broken."""

    has_captions: bool = True
    """Whether its samples have texts."""
    text_names: Sequence[str] = ()
    """Names of the texts that it has, other than the captions."""
    num_targets: int = 0
    """Numbers that each sample has."""
    has_groups: bool = False
    """Whether each sample belongs to a group, for figures by group."""
    weighs_captions: bool = False
    """Whether `caption_sources` is defined."""
    blocks: Blocks | None = None
    """Samples that are read together, where reading one alone takes as long."""
    lost: Sequence[Lost] = ()
    """Shards, and parts of shards, that cannot be read and are left out."""
    streams: ClassVar[bool] = False
    """Whether it can be read in an order of its own only."""
    streams_by_key: ClassVar[frozenset[str]] = frozenset()
    """Keys that, set to true, make it a stream."""

    def opened(self) -> Reader | StreamReader:
        """What to read from: itself, or a stream where the data turns out to allow nothing else."""
        return self

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, index: int) -> bytes | str | Image.Image | None:
        """Encoded bytes, a local path, or a rendered picture; nothing is decoded here. None
        where it has none.

        Raises:
            Broken: this one sample cannot be read.
        """
        raise NotImplementedError

    def mesh(self, index: int) -> np.ndarray | None:
        """Points on the surface of its mesh with their normals, `[P, 6]` float32; None where it has
        none.

        Raises:
            Broken: this one sample cannot be read.
        """
        return None

    def captions(self, index: int) -> Sequence[str]:
        """All texts of the sample at this position, without touching the image: its captions, then
        each named text in the order of `text_names`.

        Raises:
            Broken: they cannot be read.
        """
        raise NotImplementedError

    def text_span(self, index: int, name: str = "main") -> tuple[int, int]:
        """Which of `captions` a text is: first and past-the-last position; "main" is the captions
        proper.

        Raises:
            KeyError: no text has this name.
        """
        if name != "main":
            raise KeyError(name)
        return 0, self.caption_start(index + 1) - self.caption_start(index)

    def caption_sources(self, index: int) -> Sources:
        """Where each of the captions proper comes from, where sources have weights.

        Raises:
            Broken: the captions cannot be read.
        """
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Class of the image, or -1."""
        return -1

    def labels(self, index: int) -> Sequence[int]:
        """All classes of the image, for multi-label data."""
        label = self.label(index)
        return () if label < 0 else (label,)

    def group(self, index: int) -> str:
        """Name of the group that the sample belongs to; empty where it is in none."""
        return ""

    def name(self, index: int) -> str:
        """What a message calls the sample."""
        return f"sample {index}"

    def rows_named(self, names: Collection[str]) -> np.ndarray:
        """Positions of the samples of these names, ascending, int64."""
        return np.array([k for k in range(len(self)) if self.name(k) in names], dtype=np.int64)

    def id(self, index: int) -> str:
        """What results call the sample."""
        return self.name(index)

    def fingerprint(self) -> str:
        """Changes whenever the images, captions or their order do; cached features are found by
        it."""
        raise NotImplementedError

    def image_fingerprint(self) -> str:
        """Changes whenever the images or their order do; cached features of images are found by
        it. By default `fingerprint`."""
        return self.fingerprint()

    def caption_start(self, index: int) -> int:
        """Number of texts before those of this position; the row of its first text in a table of
        all texts.

        `caption_start(len(reader))` is the number of texts.
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

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        """Numbers of many positions at once, `[N, num_targets]` float32; NaN where a sample lacks
        one."""
        return np.full((len(indices), self.num_targets), np.nan, dtype=np.float32)

    def column(self, name: str) -> Sequence[str]:
        """A further fact of every sample, as text, by the name of its column; empty where a sample
        lacks it.

        Raises:
            DataError: there is no such column.
        """
        raise DataError(f"the data has no columns, and '{name}' is one. Read a table.")

    @property
    def num_captions(self) -> int:
        """Texts in total."""
        return self.caption_start(len(self))


class StreamReader(Offers):
    """A data set that can only be read in its own order (remote shards). Not cacheable; a resumed
    epoch reads up to its position again."""

    streams: ClassVar[bool] = True

    samples_per_epoch: int
    text_names: Sequence[str] = ()
    """Names of the texts that its samples have, other than the captions."""
    num_targets: int = 0
    """Numbers that each sample has."""

    def stream(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        """The samples of one of `num_shards` disjoint parts (rank x worker) in an order that
        depends on seed and epoch only."""
        raise NotImplementedError


def with_split(path: str, split: str | None, default: str = "train") -> str:
    """A path with `{split}` replaced by `split`.

    Raises:
        DataError: a split is given and the path has no `{split}`.
    """
    if split is not None and "{split}" not in path:
        raise DataError(
            f"data.split is '{split}', but data.path ({path}) has no '{{split}}' to put it in."
        )
    return path.replace("{split}", split or default)
