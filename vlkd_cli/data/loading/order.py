"""Which rows an epoch draws, in which order: computed from (seed, epoch) by whoever asks, for any
slice."""

from __future__ import annotations

import numpy as np

from vlkd_cli.data.loading.shuffling import hashed, permuted

_BLOCK = 1 << 16


class EpochOrder:
    """The order of an epoch's draws.

    Without `episode_samples` an epoch is one pass over all rows. With it, passes over all rows
    follow one another endlessly, each shuffled on its own, and an epoch is the next
    `episode_samples` draws of them: every row is seen once before any is seen twice, however short
    the episodes, and an episode may also be longer than the data.

    Args:
        num_rows: rows of the reader.
        seed: the run's.
        shuffle: False: rows in their own order.
        episode_samples: draws per epoch; None: as many as there are rows.
    """

    def __init__(
        self, num_rows: int, *, seed: int, shuffle: bool = True, episode_samples: int | None = None
    ) -> None:
        self.num_rows, self.seed, self.shuffle = num_rows, seed, shuffle
        self.num_draws = episode_samples or num_rows
        self._block: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return self.num_draws

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows of the draws `[start, stop)` of an epoch, int64; draws beyond the end begin the
        epoch anew."""
        draws = np.arange(start, stop, dtype=np.int64) % self.num_draws
        if not self.shuffle:
            return (epoch * self.num_draws + draws) % self.num_rows
        rows = np.empty(len(draws), dtype=np.int64)
        for block in np.unique(draws // _BLOCK):
            inside = draws // _BLOCK == block
            rows[inside] = self._shuffled(epoch, int(block))[draws[inside] % _BLOCK]
        return rows

    def _shuffled(self, epoch: int, block: int) -> np.ndarray:
        # Blocks are kept because a permutation of many positions costs hardly more than one of a
        # single batch.
        if self._block is None or self._block[0] != (epoch, block):
            draws = np.arange(
                block * _BLOCK, min((block + 1) * _BLOCK, self.num_draws), dtype=np.int64
            )
            passes, positions = np.divmod(epoch * self.num_draws + draws, self.num_rows)
            self._block = (
                (epoch, block),
                permuted(positions, self.num_rows, hashed(self.seed, passes)),
            )
        return self._block[1]
