"""Numbers that change with time."""

from __future__ import annotations

import numpy
import pytest
from pydantic import ValidationError

from vlkd_cli.recipe.types import Progress, Schedule, value_at


def test_epochs_follow_linspace():
    schedule = Schedule(linear=(0.04, 0.07), epochs=30)
    values = [schedule.at(epoch * 7 + 3, steps_per_epoch=7) for epoch in range(40)]
    assert values[:30] == pytest.approx(numpy.linspace(0.04, 0.07, 30))
    assert values[30:] == pytest.approx([0.07] * 10)


def test_without_a_length_it_lasts_for_the_whole_run():
    schedule = Schedule(cosine=(0.99, 1.0))
    assert [schedule.at(step, total_steps=11) for step in (0, 5, 10)] == pytest.approx(
        [0.99, 0.995, 1.0]
    )


def test_steps_end_at_the_last_of_them():
    schedule = Schedule(linear=(0, 1), steps=5)
    assert [schedule.at(step) for step in range(7)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1])


def test_a_plain_number_is_always_itself():
    assert value_at(3, step=10) == 3.0


def test_a_jump_has_its_first_value_for_so_many_steps_or_epochs():
    by_steps = Schedule(jump=(0, 0.5), steps=3)
    assert [by_steps.at(step) for step in range(5)] == [0, 0, 0, 0.5, 0.5]
    by_epochs = Schedule(jump=(1, 0.5), epochs=2)
    assert [by_epochs.at(step, steps_per_epoch=2) for step in range(6)] == [1, 1, 1, 1, 0.5, 0.5]


def test_progress_gives_the_epoch_and_reads_schedules():
    progress = Progress(step=5, steps_per_epoch=2, total_steps=11)
    assert progress.epoch == 2
    assert progress.value(0.25) == 0.25
    assert progress.value(Schedule(linear=(0, 1))) == 0.5


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"linear": (0, 1), "cosine": (0, 1)},
        {"linear": (0, 1), "epochs": 1, "steps": 1},
        {"linear": (0, 1), "x": 1},
        {"jump": (0, 1)},
        {"jump": (0, 1), "cosine": (0, 1), "steps": 2},
    ],
)
def test_other_forms_are_refused(keys):
    with pytest.raises(ValidationError):
        Schedule(**keys)
