"""The toolkit's search for learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LEARNING_RATES = tuple(np.logspace(-6, -1, 6).tolist())
WEIGHT_DECAYS = tuple(np.logspace(-6, 6, 97).tolist())
FIRST_STEP = 16
"""Distance on the weight decay grid of the first look."""


class Trial(NamedTuple):
    """One training of a search."""

    lr: float
    weight_decay: float


class Search(NamedTuple):
    """What a search chose and what it looked at."""

    best: Trial
    score: float
    visited: dict[float, dict[int, float]]
    """Learning rate -> index on the weight decay grid -> score, in the order of looking."""

    @property
    def num_trainings(self) -> int:
        return sum(len(scores) for scores in self.visited.values())


def search(
    score: Callable[[Sequence[Trial]], Sequence[float]],
    learning_rates: Sequence[float] = LEARNING_RATES,
) -> Search:
    """The best pair: for each learning rate a coarse look over all weight decays, then steps of 8,
    4, 2 and 1 around the peak.

    The learning rates do not depend on each other, so their looks are scored together, which lets
    trainings share work. The first of equals wins.

    Args:
        score: larger is better, for several trials at once; a value that is not finite counts as 0.

    Source: Elevater_Toolkit_IC @00d0af7, evaluation/full_model_finetune.py, hyperparameter_sweep_lr
        and hyperparameter_sweep.
    """
    visited: dict[float, dict[int, float]] = {lr: {} for lr in learning_rates}
    peaks = dict.fromkeys(learning_rates, 0)
    looks = {lr: list(range(0, len(WEIGHT_DECAYS), FIRST_STEP)) for lr in learning_rates}
    step = FIRST_STEP
    while True:
        trials = [(lr, index) for lr in learning_rates for index in looks[lr]]
        scores = score([Trial(lr, WEIGHT_DECAYS[index]) for lr, index in trials])
        for (lr, index), value in zip(trials, scores, strict=True):
            visited[lr][index] = value if math.isfinite(value) else 0.0
        # dict order is the order of the search, and max returns the first of equals.
        peaks = {lr: max(visited[lr], key=visited[lr].__getitem__) for lr in learning_rates}
        step //= 2
        if step == 0:
            break
        looks = {
            lr: [
                index
                for index in (peaks[lr] - step, peaks[lr] + step)
                if 0 <= index < len(WEIGHT_DECAYS)
            ]
            for lr in learning_rates
        }
    best = max(learning_rates, key=lambda lr: visited[lr][peaks[lr]])
    return Search(Trial(best, WEIGHT_DECAYS[peaks[best]]), visited[best][peaks[best]], visited)
