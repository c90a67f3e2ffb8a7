"""SentEval's three ways to choose a regularization and to score a classifier of frozen sentence
features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.probes.softmax_grid import FAST, PAPER, ClassifierSettings, SoftmaxGrid

Labels = NDArray[np.int64]
Kind = Literal["paper", "fast", "sklearn"]

# The seed of the nested folds is fixed in SentEval's code, whatever the seed of the evaluation.
NESTED_SEED = 1111


class Scores(NamedTuple):
    """Accuracies in percent, rounded as SentEval reports them, and the answers on the test rows
    where there is one test set."""

    dev: float
    test: float
    predicted: Labels | None = None


class Protocol(NamedTuple):
    """What trains the classifiers.

    Args:
        kind: `paper` and `fast` are the torch classifier, `sklearn` logistic regression.
        folds: of cross-validation.
        seed: of folds, starts and batches.
        hidden: units of the torch classifier's hidden layer.
        dropout: in the hidden layer.
        device: where the torch classifier trains.
    """

    kind: Kind = "paper"
    folds: int = 10
    seed: int = 1111
    hidden: int = 0
    dropout: float = 0.0
    device: torch.device = torch.device("cpu")

    @property
    def settings(self) -> ClassifierSettings:
        return (FAST if self.kind == "fast" else PAPER)._replace(
            hidden=self.hidden, dropout=self.dropout
        )

    def grid(self, inverse: range) -> list[float]:
        """Weight decays of the torch classifier, or the given powers of two as inverse strengths of
        logistic regression."""
        return (
            [2.0**power for power in inverse]
            if self.kind == "sklearn"
            else [10.0**power for power in range(-5, -1)]
        )


def nested_folds(features: Tensor, labels: Labels, protocol: Protocol) -> Scores:
    """No test set: an outer cross-validation scores what an inner one has chosen. The outer folds
    are dealt to the ranks.

    Returns:
        Means over the outer folds of the best inner score and of the accuracy on the fold.
    """
    grid = protocol.grid(range(-2, 4))
    outer = _folds(labels, protocol.folds, NESTED_SEED)
    own = []
    for number, (train, held) in enumerate(outer):
        if number % world_size() != rank():
            continue
        scores = _cross_validate(
            features[train],
            labels[train],
            grid,
            protocol,
            _folds(labels[train], protocol.folds, NESTED_SEED),
        )
        best = int(np.argmax(scores))
        predicted = _final(
            features[train], labels[train], None, features[held], grid[best], protocol
        )
        own.append((number, scores[best], _percent(predicted == labels[held])))
    every = sorted(fold for part in gather_objects(own) for fold in part)
    dev, test = (round(float(np.mean([fold[column] for fold in every])), 2) for column in (1, 2))
    return Scores(dev, test)


def folds_then_test(
    train: tuple[Tensor, Labels], test: tuple[Tensor, Labels], protocol: Protocol
) -> Scores:
    """Cross-validation on the training rows chooses; a classifier of all of them is tested. The
    folds are dealt to the ranks."""
    features, labels = train
    grid = protocol.grid(range(-1, 6))
    folds = _folds(labels, protocol.folds, protocol.seed)
    own = [fold for number, fold in enumerate(folds) if number % world_size() == rank()]
    each = gather_objects(_fold_scores(features, labels, grid, protocol, own))
    # Fold i was done by rank i % W; their order does not matter for a mean, but its last bit should
    # not depend on W either.
    ordered = [each[number % world_size()][number // world_size()] for number in range(len(folds))]
    scores = _rounded_means(ordered)
    best = int(np.argmax(scores))
    predicted = _final(features, labels, None, test[0], grid[best], protocol)
    return Scores(scores[best], _percent(predicted == test[1]), predicted)


def given_split(
    train: tuple[Tensor, Labels],
    dev: tuple[Tensor, Labels],
    test: tuple[Tensor, Labels],
    protocol: Protocol,
) -> Scores:
    """The development set chooses, and stops the training of what is tested."""
    grid = protocol.grid(range(-2, 4))
    scores = [
        _percent_of(accuracy)
        for accuracy in _grid_accuracies(*train, *dev, grid, protocol, _num_classes(train[1]))
    ]
    best = int(np.argmax(scores))
    predicted = _final(*train, dev, test[0], grid[best], protocol)
    return Scores(scores[best], _percent(predicted == test[1]), predicted)


def _cross_validate(
    features: Tensor,
    labels: Labels,
    grid: Sequence[float],
    protocol: Protocol,
    folds: Sequence[tuple[Labels, Labels]],
) -> list[float]:
    return _rounded_means(_fold_scores(features, labels, grid, protocol, folds))


def _fold_scores(
    features: Tensor,
    labels: Labels,
    grid: Sequence[float],
    protocol: Protocol,
    folds: Sequence[tuple[Labels, Labels]],
) -> list[list[float]]:
    """Accuracy of every setting on every fold, `[folds][grid]`."""
    classes = _num_classes(labels)
    return [
        _grid_accuracies(
            features[train], labels[train], features[held], labels[held], grid, protocol, classes
        )
        for train, held in folds
    ]


def _rounded_means(scores: Sequence[Sequence[float]]) -> list[float]:
    # Rounded before the best is looked for, so that near-ties go to the first setting.
    return [_percent_of(float(np.mean(column))) for column in zip(*scores, strict=True)]


def _grid_accuracies(
    features: Tensor,
    labels: Labels,
    dev: Tensor,
    dev_labels: Labels,
    grid: Sequence[float],
    protocol: Protocol,
    classes: int,
) -> list[float]:
    if protocol.kind == "sklearn":
        return [
            float(
                (
                    _logistic(features, labels, c, protocol.seed).predict(dev.numpy()) == dev_labels
                ).mean()
            )
            for c in grid
        ]
    bank = SoftmaxGrid(
        features.shape[1],
        classes,
        grid,
        settings=protocol.settings,
        seed=protocol.seed,
        device=protocol.device,
    )
    held = dev, torch.from_numpy(dev_labels)
    bank.fit(features, torch.from_numpy(labels), held)
    return bank.accuracy(*held)


def _final(
    features: Tensor,
    labels: Labels,
    dev: tuple[Tensor, Labels] | None,
    test: Tensor,
    chosen: float,
    protocol: Protocol,
) -> Labels:
    if protocol.kind == "sklearn":
        return np.asarray(
            _logistic(features, labels, chosen, protocol.seed).predict(test.numpy()), dtype=np.int64
        )
    bank = SoftmaxGrid(
        features.shape[1],
        _num_classes(labels),
        [chosen],
        settings=protocol.settings,
        seed=protocol.seed,
        device=protocol.device,
    )
    bank.fit(
        features,
        torch.from_numpy(labels),
        None if dev is None else (dev[0], torch.from_numpy(dev[1])),
    )
    return bank.predict(test)[0].numpy()


def _logistic(features: Tensor, labels: Labels, inverse_strength: float, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_strength, random_state=seed).fit(features.numpy(), labels)


def _folds(labels: Labels, folds: int, seed: int) -> list[tuple[Labels, Labels]]:
    from sklearn.model_selection import StratifiedKFold

    fewest = int(np.bincount(labels)[np.unique(labels)].min())
    if fewest < folds:
        raise DataError(
            f"the rarest class has {fewest} items, and {folds} folds need one each. Use more data,"
            " or fewer folds (`kfold:`)."
        )
    splitter = StratifiedKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels)), labels))


def _num_classes(labels: Labels) -> int:
    return int(labels.max()) + 1


def _percent(hits: NDArray[np.bool_]) -> float:
    return _percent_of(float(np.mean(hits)))


def _percent_of(share: float) -> float:
    return round(100 * share, 2)
