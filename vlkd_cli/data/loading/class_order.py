"""Class-balanced steps: as many classes as fit, each with the same number of samples."""

from __future__ import annotations

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.loading.shuffling import hashed, permuted
from vlkd_cli.errors import DataError


class ClassOrder:
    """An order in which a step over all ranks holds `step_rows / per_class` classes with
    `per_class` samples each.

    Classes take turns: a round visits each once, but for the few that do not fill a step, others
    each time. So every class is sampled equally often, whatever its size. A class is shuffled again
    in each pass over it, and no row comes twice in a pass; where a class has fewer rows than
    `per_class`, rows are repeated. Rows are a function of (seed, epoch, position).

    Args:
        labels: int64 `[N]`; -1 marks an unlabeled row. Rows of classes with fewer than two of them
            are left out, with a warning.
        per_class: samples of a class in a step.
        step_rows: samples of a step over all ranks, a multiple of `per_class`.
        seed: the run's.
        episode_samples: samples per epoch; None: as many as there are rows of these classes.

    Raises:
        DataError: there are fewer classes than a step needs.
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        per_class: int,
        step_rows: int,
        seed: int,
        episode_samples: int | None = None,
    ) -> None:
        self.per_class, self.step_rows, self.seed = per_class, step_rows, seed
        by_label = np.argsort(labels, kind="stable")
        numbers, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
        taken = (numbers >= 0) & (counts >= 2)
        self._rows, self._starts, self._counts = by_label, starts[taken], counts[taken]
        self._class_of = dict(zip(numbers[taken].tolist(), range(len(self._starts)), strict=True))
        self._labels = labels
        self.classes_per_step = step_rows // per_class
        if len(self._starts) < self.classes_per_step:
            raise DataError(
                f"data.per_class needs {self.classes_per_step} classes a step, the data has"
                f" {len(self._starts)} (with two samples or more): lower train.batch_size or raise"
                " per_class."
            )
        self._warn_of_left_out(numbers, counts)
        self.steps_per_epoch = (episode_samples or int(self._counts.sum())) // step_rows

    def __len__(self) -> int:
        return self.steps_per_epoch * self.step_rows

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows at the positions `[start, stop)` of an epoch, int64; positions beyond its end are
        those of the next."""
        steps = range(start // self.step_rows, -(-stop // self.step_rows))
        rows = [self._step(epoch * self.steps_per_epoch + step) for step in steps]
        first = start - steps[0] * self.step_rows if rows else 0
        return np.concatenate([*rows, np.zeros(0, dtype=np.int64)])[first : first + stop - start]

    def passes(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The epoch's number: classes are passed at paces of their own."""
        return np.full(len(positions), epoch, dtype=np.int64)

    def rest(self, epoch: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """None: an epoch does not pass over the data once."""
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)

    def replacement(self, row: int, seed: int, attempt: int) -> int:
        """A row of the same class that replaces a broken one."""
        own = self._class_of[int(self._labels[row])]
        position = int(hashed(seed, attempt)[0] % np.uint64(self._counts[own]))
        return int(self._rows[self._starts[own] + position])

    def _step(self, step: int) -> np.ndarray:
        """The rows of a step, counted from the run's beginning, class after class."""
        num_classes, size = len(self._starts), self.classes_per_step
        turn, batch = divmod(step, num_classes // size)
        slots = np.arange(batch * size, (batch + 1) * size)
        chosen = permuted(slots, num_classes, hashed(self.seed, 11, turn))
        return np.concatenate([self._of_class(int(each), turn) for each in chosen])

    def _of_class(self, own: int, turn: int) -> np.ndarray:
        count, positions, key = int(self._counts[own]), np.arange(self.per_class), turn
        if count >= self.per_class:
            key, group = divmod(turn, count // self.per_class)
            positions = positions + group * self.per_class
        keys = hashed(self.seed, 12, own, key)
        rows: np.ndarray = self._rows[self._starts[own] + permuted(positions % count, count, keys)]
        return rows

    def _warn_of_left_out(self, numbers: np.ndarray, counts: np.ndarray) -> None:
        alone = int(np.count_nonzero((numbers >= 0) & (counts < 2)))
        bare = int(counts[numbers < 0].sum())
        left = [f"{alone} {'class' if alone == 1 else 'classes'} with one sample"] * bool(alone)
        left += [f"{bare} {'sample' if bare == 1 else 'samples'} without a label"] * bool(bare)
        if left:
            verb = "is" if alone + bare == 1 else "are"
            console.warn_once(f"data.per_class: {' and '.join(left)} {verb} left out.")
