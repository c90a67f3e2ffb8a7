from __future__ import annotations

import pytest

from vlkd_cli.engine.schedules import learning_rate_factor
from vlkd_cli.recipe.schema import ScheduleSpec
from vlkd_cli.recipe.types import Progress, Schedule


def factors(total: int, **keys: object) -> list[float]:
    spec = ScheduleSpec(**keys)  # type: ignore[arg-type]
    return [
        learning_rate_factor(spec, Progress(step, steps_per_epoch=10, total_steps=total))
        for step in range(total)
    ]


def test_warmup_rises_linearly_and_ends_at_one() -> None:
    assert factors(8, warmup_steps=4)[:4] == [0.25, 0.5, 0.75, 1.0]


def test_warmup_in_epochs_counts_their_steps() -> None:
    assert factors(40, warmup_epochs=0.5)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert factors(101, name="cosine")[50] == pytest.approx(0.5, abs=0.01)


def test_linear_and_cosine_end_at_the_end_factor() -> None:
    for name in ("linear", "cosine"):
        spec = ScheduleSpec(name=name, end_factor=0.1)  # type: ignore[arg-type]
        assert learning_rate_factor(spec, Progress(100, 10, 100)) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert set(factors(5, name="constant")) == {1.0}


def test_a_schedule_over_epochs_is_numpys_linspace_indexed_by_the_epoch() -> None:
    schedule = Schedule(linear=(0.04, 0.07), epochs=4)
    values = [schedule.at(step, steps_per_epoch=2, total_steps=100) for step in range(10)]
    assert values == pytest.approx([0.04, 0.04, 0.05, 0.05, 0.06, 0.06, 0.07, 0.07, 0.07, 0.07])


def test_a_schedule_over_the_run_ends_with_its_last_value() -> None:
    schedule = Schedule(cosine=(0.99, 1.0))
    assert schedule.at(0, 5, 11) == pytest.approx(0.99)
    assert schedule.at(5, 5, 11) == pytest.approx(0.995)
    assert schedule.at(10, 5, 11) == pytest.approx(1.0)


def test_steps_fall_at_their_milestones_which_are_epochs() -> None:
    found = factors(40, name="steps", milestones=[1, 3], factor=0.5, warmup_steps=2)
    assert found == [0.5, 1.0, *[1.0] * 8, *[0.5] * 20, *[0.25] * 10]
