"""Counting what could not be read, and stopping when it is too much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlkd_cli.data.batch import Batch, Lost, Skipped
from vlkd_cli.errors import DataError

_FEWEST = 5


class BrokenCount:
    """Different broken samples among the different samples that this process has seen, however
    often each was sampled.

    Fewer than five never stop a run, unless none at all is allowed: of a small set, one broken file
    is a large fraction already.

    Args:
        max_share: the largest fraction that is allowed.
        num_samples: of the data set; of a stream, whose samples have no number, those of an epoch.
        is_stream: whether the samples have no number.
    """

    def __init__(self, max_share: float, num_samples: int, *, is_stream: bool = False) -> None:
        self.max_share, self.num_samples = max_share, num_samples
        self.broken: dict[str, Skipped | Lost] = {}
        # A bit for each sample: a billion of them are 125 MB.
        self._seen = None if is_stream else np.zeros((num_samples + 7) // 8, dtype=np.uint8)
        self._num_good = 0

    def take(self, batch: Batch) -> None:
        """Count a batch.

        Raises:
            DataError: the fraction is exceeded.
        """
        self._num_good = min(self._num_good + self._num_new(batch), self.num_samples)
        if not batch.skipped:
            return
        for skipped in batch.skipped:
            self.broken.setdefault(skipped.name, skipped)
        count = sum(each.num_samples for each in self.broken.values())
        seen = self._num_good + count
        # A quotient: 0.29 * 100 is less than 29.
        if count / seen > self.max_share and (count >= _FEWEST or self.max_share == 0):
            first = next(iter(self.broken.values()))
            raise DataError(
                f"{count} of {seen} samples are broken ({count / seen:.1%}, allowed"
                f" {self.max_share:.1%}); the first: {first.name}: {first.reason}. Repair or remove"
                " them, or raise data.max_broken_share."
            )

    def _num_new(self, batch: Batch) -> int:
        """How many samples of the batch were not seen before."""
        if self._seen is None:
            return len(batch)
        rows = np.unique(batch.indices.numpy())
        slots, bits = rows >> 3, (1 << (rows & 7)).astype(np.uint8)
        num_new = int(np.count_nonzero(self._seen[slots] & bits == 0))
        np.bitwise_or.at(self._seen, slots, bits)
        return num_new


def refuse_lost(lost: Sequence[Lost], num_samples: int, max_share: float | None) -> None:
    """Check what a reader has left out before anything is read.

    Args:
        lost: shards and parts of shards that cannot be read.
        num_samples: that the reader has.
        max_share: the largest fraction of the data that may be lost; None: nothing may, as in an
            evaluation.

    Raises:
        DataError: more is lost.
    """
    if not lost:
        return
    first = f"{lost[0].name}: {lost[0].reason}"
    if max_share is None:
        raise DataError(f"{first}. Fetch it again, or take it out of data.path.")
    count = sum(each.num_samples for each in lost)
    share = count / (num_samples + count)
    if share > max_share and (max_share == 0 or count >= _FEWEST or len(lost) < count):
        raise DataError(
            f"about {count:,} of {num_samples + count:,} samples are lost ({share:.1%}, allowed"
            f" {max_share:.1%}); the first: {first}. Fetch the shards again, take them out of"
            " data.path, or raise data.max_broken_share."
        )
