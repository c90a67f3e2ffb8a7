"""Which rows an epoch takes, in which order: computed from (seed, epoch) by anyone who asks, for
any slice."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vlkd_cli.data.loading.shuffling import hashed, permuted

_BLOCK = 1 << 16


class Order(Protocol):
    """Positions of an epoch to rows of the data; a function of its arguments alone."""

    def __len__(self) -> int:
        """Positions of an epoch."""
        ...

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at the positions `[start, stop)` of an epoch, int64."""
        ...

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """The row that takes the place of a broken one."""
        ...


class EpochOrder:
    """All rows, pass after pass.

    Without `episode_samples` an epoch is one pass over all rows. With it, passes over all rows
    follow one another endlessly, each shuffled on its own, and an epoch is the next
    `episode_samples` positions of them: every row is seen once before any is seen twice, however
    short the episodes, and an episode may also be longer than the data.

    Args:
        num_rows: rows of the reader.
        seed: the run's.
        shuffle: False: rows in their own order.
        episode_samples: positions per epoch; None: as many as there are rows.
    """

    def __init__(
        self, num_rows: int, *, seed: int, shuffle: bool = True, episode_samples: int | None = None
    ) -> None:
        self.num_rows, self.seed, self.shuffle = num_rows, seed, shuffle
        self.num_positions = episode_samples or num_rows
        self._block: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_positions

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at the positions `[start, stop)` of an epoch, int64; positions beyond its end are
        those of its beginning."""
        positions = np.arange(start, stop, dtype=np.int64) % self.num_positions
        if not self.shuffle:
            return (epoch * self.num_positions + positions) % self.num_rows
        rows = np.empty(len(positions), dtype=np.int64)
        for block in np.unique(positions // _BLOCK):
            inside = positions // _BLOCK == block
            rows[inside] = self._shuffled(epoch, int(block))[positions[inside] % _BLOCK]
        return rows

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """Any row of the data."""
        return int(hashed(seed, attempt)[0] % np.uint64(self.num_rows))

    def _shuffled(self, epoch: int, block: int) -> np.ndarray:
        # A block is stored because a permutation of many positions costs hardly more than one of a
        # single batch.
        if self._block is None or self._block[0] != (epoch, block):
            positions = np.arange(
                block * _BLOCK, min((block + 1) * _BLOCK, self.num_positions), dtype=np.int64
            )
            passes, places = np.divmod(epoch * self.num_positions + positions, self.num_rows)
            self._block = (
                (epoch, block),
                permuted(places, self.num_rows, hashed(self.seed, passes)),
            )
        return self._block[1]
