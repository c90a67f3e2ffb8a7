"""Steps in which no two samples have the same caption, or the same cell of a column."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.loading.order import Order
from vlkd_cli.errors import DataError

KeysOf = Callable[[int, np.ndarray], np.ndarray]
"""Keys of the rows of an epoch, int64; equal for samples that must not meet, -1 equals nothing."""


class Plan(NamedTuple):
    """An epoch's steps.

    Args:
        steps: positions in the epoch's order, `[steps, step_rows]`.
        left_over: how many positions fill no step.
    """

    steps: np.ndarray
    left_over: int


def plan(keys: Sequence[int] | np.ndarray, step_rows: int) -> Plan:
    """Fill steps with samples of different keys, in their order: a step takes those that wait
    before it reads on, and a sample whose key it has already waits for the next.

    Takes O(n log n): of each key only the first that waits is looked at.

    Args:
        keys: of the samples in the epoch's order; negative ones equal nothing.
        step_rows: samples of a step.
    """
    # A sample without a key never waits, so any number that is not a key will do for it.
    names = [-1 - at if key < 0 else int(key) for at, key in enumerate(keys)]
    waiting: dict[int, deque[int]] = {}
    firsts: list[int] = []  # a heap of the first position that waits of each key
    steps: list[list[int]] = []
    reads = 0
    while True:
        step: list[int] = []
        while firsts and len(step) < step_rows:
            step.append(heapq.heappop(firsts))
        for at in step:
            own = waiting[names[at]]
            own.popleft()
            if own:
                heapq.heappush(firsts, own[0])
            else:
                del waiting[names[at]]
        taken = {names[at] for at in step}
        while len(step) < step_rows and reads < len(names):
            at, key = reads, names[reads]
            reads += 1
            if key in taken:
                own = waiting.setdefault(key, deque())
                own.append(at)
                if len(own) == 1:
                    heapq.heappush(firsts, at)
            else:
                taken.add(key)
                step.append(at)
        if len(step) < step_rows:
            break
        steps.append(step)
    planned = np.array(steps, dtype=np.int64).reshape(len(steps), step_rows)
    return Plan(planned, len(names) - planned.size)


class DistinctOrder:
    """The rows of another order, regrouped so that the keys of a step over all ranks differ.

    An epoch has as many steps as the first; where a later one fills fewer, its first steps come
    again. Rows are a function of (seed, epoch, position), so ranks, workers and resumed runs agree.

    Args:
        order: the epoch's order.
        keys_of: keys of rows in an epoch.
        step_rows: samples of a step over all ranks.
        what: what differs within a step, for messages.

    Raises:
        DataError: no step can be filled.
    """

    def __init__(self, order: Order, keys_of: KeysOf, *, step_rows: int, what: str) -> None:
        self.order, self.keys_of, self.step_rows, self.what = order, keys_of, step_rows, what
        # Its number, the positions of its steps, and the rows of all positions.
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None
        first = self._plan(0)
        self.steps_per_epoch = len(first.steps)
        if not self.steps_per_epoch:
            raise DataError(
                f"data.distinct: {what}: no step of {step_rows} samples over all processes can be"
                " filled with different ones. Lower train.batch_size, or leave distinct out."
            )
        self._warn_of_left_out(first)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.step_rows

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at the positions `[start, stop)` of an epoch, int64."""
        wanted = self._positions(epoch, np.arange(start, stop, dtype=np.int64))
        assert self._epoch is not None
        found: np.ndarray = self._epoch[2][wanted]
        return found

    def passes(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Those of the other order's positions."""
        return self.order.passes(epoch, self._positions(epoch, positions))

    def rest(self, epoch: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """What is in no step before `start`."""
        left = np.ones(len(self.order), dtype=np.bool_)
        left[self._positions(epoch, np.arange(start, dtype=np.int64))] = False
        positions = np.flatnonzero(left)
        rows = self.order.rows(epoch, 0, len(self.order))[positions]
        return rows, self.order.passes(epoch, positions)

    def _positions(self, epoch: int, own: np.ndarray) -> np.ndarray:
        """Positions in the other order."""
        if self._epoch is None or self._epoch[0] != epoch:
            steps = self._plan(epoch).steps
            if not len(steps):
                raise DataError(
                    f"data.distinct: {self.what}: epoch {epoch} has no step of {self.step_rows}"
                    " different ones, though the first has. Lower train.batch_size."
                )
            self._epoch = epoch, steps, self.order.rows(epoch, 0, len(self.order))
        steps = self._epoch[1]
        found: np.ndarray = steps[(own // self.step_rows) % len(steps), own % self.step_rows]
        return found

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """Any row; its caption may be one of the step."""
        return self.order.replacement(row, seed, attempt)

    def _plan(self, epoch: int) -> Plan:
        rows = self.order.rows(epoch, 0, len(self.order))
        return plan(self.keys_of(epoch, rows), self.step_rows)

    def _warn_of_left_out(self, first: Plan) -> None:
        if not first.left_over:
            return
        rows = self.order.rows(0, 0, len(self.order))
        keys = self.keys_of(0, rows)
        _, counts = np.unique(keys[keys >= 0], return_counts=True)
        most = int(counts.max(initial=0))
        reason = ""
        if most > self.steps_per_epoch:
            reason = (
                f"; the most frequent {self.what} has {most:,} samples and an epoch"
                f" {self.steps_per_epoch:,} steps"
            )
        console.warn_once(
            f"data.distinct: {first.left_over:,} of {len(rows):,} samples of an epoch are left out"
            f"{reason}."
        )
