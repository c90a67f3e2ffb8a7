"""Which rows an epoch takes, in which order: computed from (seed, epoch) by anyone who asks, for
any slice."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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

    def passes(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """How many passes over the data are complete at the positions of an epoch, int64."""
        ...

    def rest(self, epoch: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an epoch's data at no position before `start`, and their passes."""
        ...

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """The row that replaces a broken one."""
        ...


class _PassAfterPass:
    """Base of the orders of all rows: `num_positions` of an epoch, in passes of `num_rows`."""

    num_rows: int
    num_positions: int

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError

    def passes(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The epoch's number; with `episode_samples` a pass may begin inside an epoch."""
        own = np.asarray(positions, dtype=np.int64) % self.num_positions
        passes: np.ndarray = (epoch * self.num_positions + own) // self.num_rows
        return passes

    def rest(self, epoch: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """The positions from `start` on."""
        positions = np.arange(start, self.num_positions, dtype=np.int64)
        return self.rows(epoch, start, self.num_positions), self.passes(epoch, positions)


class EpochOrder(_PassAfterPass):
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
            passes, offsets = np.divmod(epoch * self.num_positions + positions, self.num_rows)
            self._block = (
                (epoch, block),
                permuted(offsets, self.num_rows, hashed(self.seed, passes)),
            )
        return self._block[1]


class Blocks(NamedTuple):
    """Rows that are read together, such as the row groups of Parquet files.

    Args:
        starts: `[G + 1]` int64, ascending: where each block begins, and the number of rows.
        at_once: blocks whose rows are shuffled among each other.
    """

    starts: np.ndarray
    at_once: int


class BlockOrder(_PassAfterPass):
    """All rows, pass after pass, as `EpochOrder`, for data that is read in blocks: each pass takes
    the blocks in an order of its own, and shuffles the rows of several of them among each other. A
    process reads each block about once.

    Args:
        blocks: of the rows.
        seed: the run's.
        episode_samples: positions per epoch; None: as many as there are rows.
    """

    def __init__(self, blocks: Blocks, *, seed: int, episode_samples: int | None = None) -> None:
        self.blocks, self.seed = blocks, seed
        self.num_rows = int(blocks.starts[-1])
        self.num_positions = episode_samples or self.num_rows
        self._pass: tuple[int, _Pass] | None = None

    def __len__(self) -> int:
        return self.num_positions

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at the positions `[start, stop)` of an epoch, int64; positions beyond its end are
        those of its beginning."""
        positions = np.arange(start, stop, dtype=np.int64) % self.num_positions
        passes, offsets = np.divmod(epoch * self.num_positions + positions, self.num_rows)
        rows = np.empty(len(positions), dtype=np.int64)
        for number in np.unique(passes):
            own = passes == number
            rows[own] = self._of_pass(int(number)).rows(offsets[own])
        return rows

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """A row of the same block, which is in memory; after some tries any row."""
        starts = self.blocks.starts
        block = int(np.searchsorted(starts, row, side="right")) - 1
        first, stop = (0, self.num_rows) if attempt > 8 else starts[block : block + 2].tolist()
        return int(first + hashed(seed, attempt)[0] % np.uint64(stop - first))

    def _of_pass(self, number: int) -> _Pass:
        if self._pass is None or self._pass[0] != number:
            self._pass = number, _Pass(self.blocks, int(hashed(self.seed, number, 2)[0]))
        return self._pass[1]


class _Pass:
    """The order of one pass over all blocks."""

    def __init__(self, blocks: Blocks, key: int) -> None:
        count = len(blocks.starts) - 1
        self.key = np.uint64(key)
        self.order = permuted(np.arange(count), count, np.array([self.key]))
        self.firsts = blocks.starts[self.order]
        sizes = np.diff(blocks.starts)[self.order]
        self.before = np.concatenate([[0], np.cumsum(sizes)])
        self.bounds = np.append(self.before[: -1 : blocks.at_once], self.before[-1])

    def rows(self, offsets: np.ndarray) -> np.ndarray:
        shuffled = np.empty_like(offsets)
        windows = np.searchsorted(self.bounds, offsets, side="right") - 1
        for window in np.unique(windows):
            own = windows == window
            first, stop = self.bounds[window : window + 2].tolist()
            key = hashed(self.key, window, 4)
            shuffled[own] = first + permuted(offsets[own] - first, stop - first, key)
        blocks = np.searchsorted(self.before, shuffled, side="right") - 1
        rows: np.ndarray = self.firsts[blocks] + shuffled - self.before[blocks]
        return rows
