"""What ELEVATER trains: heads on frozen features, or the whole tower on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.collectives import broadcast_object, gather_objects
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.elevater.metrics import METRICS
from vlkd_cli.elevater.protocol import Outcome
from vlkd_cli.elevater.sweep import Trial
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.evaluation.probes.fine_tuning import (
    Point,
    TowerClassifier,
    class_probabilities,
    train_classifier,
)
from vlkd_cli.evaluation.probes.probes import HeadBank, HeadSetting, train_heads
from vlkd_cli.features.subject import Subject

T = TypeVar("T")

BANK_NUMBERS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Weights that one bank of heads may hold; a wider search is trained in several banks. A CPU is
fastest while a bank stays in its cache."""


@dataclass
class Task:
    """A data set as a learner sees it: targets `[N]` int64, or `[N, C]` of zeros and ones for
    multi-label data."""

    metric: str
    num_classes: int
    multi_label: bool
    train_targets: Tensor
    """Of the sample's rows."""
    test_targets: Tensor

    def score(self, probabilities: Tensor, targets: Tensor) -> float:
        """The metric, or 0 where there is none: outputs that are not finite, or a validation part
        of one class."""
        if not bool(torch.isfinite(probabilities).all()):
            return 0.0
        try:
            return METRICS[self.metric](probabilities.numpy(), targets.numpy())
        except DataError:
            return 0.0


class ProbeLearner:
    """Heads on features that were computed once; all trials of a look in one pass.

    Args:
        train: `[S, D]` features of the sample's rows.
        test: `[N, D]` features of the test rows.
        initial: `[C, D]` start of the heads; None: random.
    """

    def __init__(
        self,
        task: Task,
        train: Tensor,
        test: Tensor,
        *,
        initial: Tensor | None,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.task, self.train, self.test = task, train, test
        self.initial, self.device, self.seed = initial, device, seed

    @property
    def num_trainable(self) -> int:
        return self.task.num_classes * (self.train.shape[1] + 1)

    def curves(
        self, trials: Sequence[Trial], *, train: Sequence[int], valid: Sequence[int], epochs: int
    ) -> list[list[float]]:
        at_once = max(
            1,
            BANK_NUMBERS.get(self.device.type, 1 << 24)
            // (self.task.num_classes * self.train.shape[1]),
        )
        features, targets = self.train[list(valid)], self.task.train_targets[list(valid)]
        curves: list[list[float]] = []
        for start in range(0, len(trials), at_once):
            some = trials[start : start + at_once]
            curves += [[] for _ in some]
            for bank in self._train(some, train, epochs):
                for head in range(len(some)):
                    curves[start + head].append(
                        self.task.score(bank.probabilities(features, head), targets)
                    )
        # One rank's numbers for all: sums may differ in the last bit between machines, and so might
        # the choice.
        answer: list[list[float]] = broadcast_object(curves)
        return answer

    def predict(
        self, trial: Trial, *, train: Sequence[int], epochs: int, best_on_test: bool
    ) -> Outcome:
        banks = self._train([trial], train, epochs)
        return _choose(
            banks, lambda bank: bank.probabilities(self.test), self.task, epochs, best_on_test
        )

    def _train(
        self, trials: Sequence[Trial], train: Sequence[int], epochs: int
    ) -> Iterator[HeadBank]:
        return train_heads(
            self.train[list(train)],
            self.task.train_targets[list(train)],
            classes=self.task.num_classes,
            settings=[HeadSetting(*trial) for trial in trials],
            epochs=epochs,
            initial=self.initial,
            multi_label=self.task.multi_label,
            device=self.device,
            seed=self.seed,
        )


class FineTuneLearner:
    """The whole image tower with a head, one training after another; the trials of a look are dealt
    to the ranks.

    A single training, such as the final one, is done by every rank alike: its steps depend on one
    another, and gradients summed over ranks would differ in their last bits from those of one
    process.

    Args:
        sample: positions of the sample's rows in `train`.
        train: reader of the training part.
        test: reader of the test part.
        point: where the tower's features are taken.
        initial: `[C, D]` start of the head; None: random.
    """

    def __init__(
        self,
        task: Task,
        subject: Subject,
        sample: Sequence[int],
        train: Reader,
        test: Reader,
        *,
        point: Point,
        initial: Tensor | None,
        seed: int = 0,
    ) -> None:
        self.task, self.subject, self.sample, self.train, self.test = (
            task,
            subject,
            list(sample),
            train,
            test,
        )
        self.point, self.initial, self.seed = point, initial, seed

    @property
    def num_trainable(self) -> int:
        return self._network().num_trainable

    def curves(
        self, trials: Sequence[Trial], *, train: Sequence[int], valid: Sequence[int], epochs: int
    ) -> list[list[float]]:
        rows, targets = [self.sample[row] for row in valid], self.task.train_targets[list(valid)]
        own: list[tuple[int, list[float]]] = []
        problem: UserError | None = None
        try:
            for number in dealt(len(trials)):
                networks = self._train(trials[number], train, epochs)
                scores = [
                    self.task.score(
                        class_probabilities(self.subject, each, self.train, rows), targets
                    )
                    for each in networks
                ]
                own.append((number, scores))
        except UserError as error:
            # The other ranks wait for this one's numbers; it reports the error and all stop
            # together.
            problem = error
        answers: list[tuple[list[tuple[int, list[float]]], UserError | None]] = gather_objects(
            (own, problem)
        )
        for _, met in answers:
            if met is not None:
                raise met
        found = {number: scores for done, _ in reversed(answers) for number, scores in done}
        return [found[number] for number in range(len(trials))]

    def predict(
        self, trial: Trial, *, train: Sequence[int], epochs: int, best_on_test: bool
    ) -> Outcome:
        everything = range(len(self.test))
        networks = self._train(trial, train, epochs)
        return _choose(
            networks,
            lambda each: class_probabilities(self.subject, each, self.test, everything),
            self.task,
            epochs,
            best_on_test,
        )

    def _network(self) -> TowerClassifier:
        assert self.subject.image is not None
        return TowerClassifier(
            self.subject.image,
            self.task.num_classes,
            point=self.point,
            initial=self.initial,
            seed=self.seed,
        )

    def _train(self, trial: Trial, train: Sequence[int], epochs: int) -> Iterator[TowerClassifier]:
        return train_classifier(
            self.subject,
            self._network(),
            self.train,
            [self.sample[row] for row in train],
            self.task.train_targets[list(train)],
            HeadSetting(*trial),
            epochs=epochs,
            multi_label=self.task.multi_label,
            seed=self.seed,
        )


def dealt(count: int) -> list[int]:
    """Which of `count` trainings this rank does: the ranks take turns, and those left over at the
    end repeat the first ones.

    They would only wait otherwise, and a long training can outlast the patience of the process
    group.
    """
    return [
        number % count
        for number in range(rank(), -(-count // world_size()) * world_size(), world_size())
    ]


def _choose(
    trained: Iterator[T],
    predict: Callable[[T], Tensor],
    task: Task,
    epochs: int,
    best_on_test: bool,
) -> Outcome:
    """Predictions of the last epoch, or of the first one that is best on the test rows; rank 0's on
    every rank."""
    best, epoch, curve = torch.empty(0), 0, [0.0][:0]
    for number, each in enumerate(trained, start=1):
        if not best_on_test and number < epochs:
            continue
        outputs = predict(each)
        if best_on_test:
            value = task.score(outputs, task.test_targets)
            curve.append(value)
            if epoch and value <= max(curve[:-1]):
                continue
        best, epoch = outputs, number
    if not bool(torch.isfinite(best).all()):
        raise UserError(
            "the final training diverged to non-finite values. Set a smaller `lr`, or let it"
            " be searched with `tune: true`."
        )
    chosen: Outcome = broadcast_object(Outcome(best, epoch, curve))
    return chosen
