"""Some positions of a data set as a data set of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.loading.order import Blocks
from vlkd_cli.data.loading.shuffling import hashed, permuted
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError

if TYPE_CHECKING:
    from PIL import Image


class Others:
    """All positions of a data set but some, computed when they are asked for.

    Args:
        left_out: ascending, int64.
        size: of the data set.
    """

    def __init__(self, left_out: np.ndarray, size: int) -> None:
        self.size = size - len(left_out)
        self.shifted = left_out - np.arange(len(left_out))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        index = np.asarray(index)
        if (index >= self.size).any() or (index < -self.size).any():
            raise IndexError(index)
        index = np.where(index < 0, index + self.size, index)
        found: np.ndarray = index + np.searchsorted(self.shifted, index, side="right")
        return found


class Subset(Reader):
    """The samples at some positions of another reader, in the order given.

    Args:
        reader: the whole.
        rows: positions in it.
    """

    def __init__(self, reader: Reader, rows: Sequence[int] | np.ndarray | Others) -> None:
        self.reader = reader
        self.rows: Any = rows if isinstance(rows, Others) else np.asarray(rows, dtype=np.int64)
        self.classes, self.templates = reader.classes, reader.templates
        self.multi_label, self.salvages = reader.multi_label, reader.salvages
        self.has_captions, self.text_names = reader.has_captions, reader.text_names
        self.num_targets, self.has_groups = reader.num_targets, reader.has_groups
        self.lost, self.weighs_captions = reader.lost, reader.weighs_captions
        self.blocks = None if reader.blocks is None else self._blocks(reader.blocks)
        self._find_starts()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> bytes | str | Image.Image | None:
        return self.reader.image(int(self.rows[index]))

    def mesh(self, index: int) -> np.ndarray | None:
        return self.reader.mesh(int(self.rows[index]))

    def captions(self, index: int) -> Sequence[str]:
        return self.reader.captions(int(self.rows[index]))

    def text_span(self, index: int, name: str = "main") -> tuple[int, int]:
        return self.reader.text_span(int(self.rows[index]), name)

    def caption_sources(self, index: int) -> Sources:
        return self.reader.caption_sources(int(self.rows[index]))

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        return self.reader.targets_of(self.rows[indices])

    def column(self, name: str) -> Sequence[str]:
        whole = self.reader.column(name)
        return [whole[row] for row in self.rows.tolist()]

    def id(self, index: int) -> str:
        return self.reader.id(int(self.rows[index]))

    def label(self, index: int) -> int:
        return self.reader.label(int(self.rows[index]))

    def labels(self, index: int) -> Sequence[int]:
        return self.reader.labels(int(self.rows[index]))

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self.reader.labels_of(self.rows[indices])

    def group(self, index: int) -> str:
        return self.reader.group(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.reader.name(int(self.rows[index]))

    def fingerprint(self) -> str:
        return digest_of("subset", self.reader.fingerprint(), self.rows.tobytes())

    def _find_starts(self) -> None:
        counts = self.reader.caption_starts(self.rows + 1) - self.reader.caption_starts(self.rows)
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def _blocks(self, blocks: Blocks) -> Blocks | None:
        if not (np.diff(self.rows) > 0).all():
            return None
        starts = np.searchsorted(self.rows, blocks.starts)
        return Blocks(np.unique(starts), blocks.at_once)

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        starts: np.ndarray = self._starts[indices]
        return starts


def checked_part(part: Sequence[float]) -> tuple[float, float]:
    """A recipe's `part` as a pair.

    Raises:
        DataError: it is not a range of fractions.
    """
    if len(part) != 2 or not 0 <= part[0] < part[1] <= 1:
        raise DataError(
            f"data.part is {list(part)}; it must be two fractions from 0 to 1, the smaller first,"
            " e.g. [0, 0.9]."
        )
    return float(part[0]), float(part[1])


def part_of(reader: Reader, part: tuple[float, float]) -> Reader:
    """The images whose position in a fixed random order lies within the two fractions, in the
    reader's own order.

    Raises:
        DataError: none does.
    """
    if part == (0.0, 1.0):
        return reader
    first, last = (round(share * len(reader)) for share in part)
    if first == last:
        raise DataError(
            f"data.part {list(part)} of {len(reader)} images is empty. Take a larger part."
        )
    return Subset(reader, np.sort(permuted(np.arange(first, last), len(reader), hashed(20_231))))
