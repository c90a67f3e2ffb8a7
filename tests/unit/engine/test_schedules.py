from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlkd_cli.engine.schedules import cooldown_start, learning_rate_factor
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import Recipe, ScheduleSpec
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


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "many_runs.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["schedules"])
def test_cooldowns_and_the_inverse_square_root_give_the_numbers_of_the_specification(
    case: dict[str, Any],
) -> None:
    keys = {
        "name": case["name"],
        "warmup_steps": case["warm"],
        "cooldown_steps": case.get("cooldown", 0),
        "cooldown_shape": case.get("shape"),
        "end_factor": case.get("end", 0.0),
        "timescale": case.get("timescale"),
    }
    found = factors(case["total_steps"], **keys)
    for step, value in case["values"]:
        assert found[step] == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_decay_of_wsd_is_1_minus_sqrt_and_that_of_others_is_linear() -> None:
    sqrt = factors(20, name="wsd", cooldown_steps=5, cooldown_shape="sqrt")
    assert factors(20, name="wsd", cooldown_steps=5) == sqrt
    linear = factors(20, name="constant", cooldown_steps=5, cooldown_shape="linear")
    assert factors(20, name="constant", cooldown_steps=5) == linear


def test_a_cooldown_in_epochs_counts_their_steps() -> None:
    assert factors(40, name="constant", cooldown_epochs=0.5) == factors(
        40, name="constant", cooldown_steps=5
    )


def test_the_timescale_is_as_long_as_the_warm_up_and_never_0() -> None:
    assert factors(20, name="rsqrt", warmup_steps=4)[8] == pytest.approx(0.5**0.5)
    assert factors(20, name="rsqrt")[3] == pytest.approx(0.5)


def recipe(total: int, **sections: Any) -> Recipe:
    plain = {"towers": {"image": {}}, "train": {"steps": total}, **sections}
    return Recipe.model_validate(plain)


def test_the_first_cooldown_counts_those_of_groups() -> None:
    group = {"match": ["*"], "schedule": {"name": "wsd", "cooldown_steps": 7}}
    run = Progress(0, 10, 20)
    assert cooldown_start(recipe(20), run) is None
    schedule = {"name": "constant", "cooldown_steps": 5}
    assert cooldown_start(recipe(20, schedule=schedule), run) == 15
    both = recipe(20, schedule=schedule, optimizer={"groups": [group]})
    assert cooldown_start(both, run) == 13


def test_a_cooldown_that_only_the_data_shows_to_be_too_long_is_refused() -> None:
    schedule = {"name": "wsd", "warmup_steps": 15, "cooldown_epochs": 1}
    with pytest.raises(
        RecipeError, match=r"schedule: warm-up \(15 steps\) and cooldown \(10\) are"
    ):
        cooldown_start(recipe(20, schedule=schedule), Progress(0, 10, 20))
