"""The toolkit's search: what it looks at, in which order, and what it chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tests.support.elevater_goldens import golden
from vlkd_cli.elevater.sweep import LEARNING_RATES, WEIGHT_DECAYS, Trial, search

EXPECTED = golden("hparam_sweep")["expected"]


def _index(trial: Trial) -> int:
    return int(np.argmin(np.abs(np.log10(WEIGHT_DECAYS) - math.log10(trial.weight_decay))))


def test_search_looks_where_the_toolkit_looks_and_chooses_the_same() -> None:
    def score(trials: Sequence[Trial]) -> list[float]:
        return [
            100 - abs(_index(trial) - 41) - 10 * abs(math.log10(trial.lr) + 3) for trial in trials
        ]

    found, expected = search(score), EXPECTED["a"]
    assert list(found.visited) == list(LEARNING_RATES)
    assert list(LEARNING_RATES) == pytest.approx(expected["lrs"], rel=1e-12)
    assert list(found.visited[LEARNING_RATES[0]]) == expected["visited_idx_for_first_lr"]
    assert found.num_trainings == expected["n_trainings"]
    assert found.best == pytest.approx((expected["best_lr"], expected["best_wd"]), rel=1e-15)


@pytest.mark.parametrize("value", [50.0, math.nan, -math.inf])
def test_the_first_of_equal_trials_wins_and_failures_count_as_0(value: float) -> None:
    found, expected = search(lambda trials: [value] * len(trials)), EXPECTED["b"]
    assert list(found.visited[LEARNING_RATES[0]]) == expected["visited_idx_for_first_lr"]
    assert found.num_trainings == expected["n_trainings"]
    assert found.best == (expected["best_lr"], WEIGHT_DECAYS[expected["best_wd_idx"]])
    assert found.score == (50.0 if value == 50.0 else 0.0)
