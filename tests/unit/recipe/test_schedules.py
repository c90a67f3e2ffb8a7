"""Keys of a schedule: impossible combinations end in one line, also in a group's schedule."""

from __future__ import annotations

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.load import parse_recipe

SMALL = """
towers:
  image: {builder: torchvision, model: resnet18, head: {name: linear, width: 8}}
  text: {builder: openclip, config: {layers: 1, width: 8, heads: 1}}
distillers: [{name: infonce}]
data: {reader: shapes}
"""


def refusal(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(SMALL, "small.yaml", list(overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("{name: wsd}", "name: wsd needs the length of its decay: `cooldown_steps: 1000` or"),
        ("{cooldown_steps: 3}", "cooldown_steps: has no effect with name: cosine. Schedules with"),
        ("{name: steps, milestones: [0.5], cooldown_epochs: 1}", "cooldown_epochs: has no effect"),
        ("{name: wsd, cooldown_steps: 3, cooldown_epochs: 1}", "cooldown_epochs: the cooldown"),
        ("{name: constant, cooldown_shape: sqrt}", "cooldown_shape: has no effect without"),
        ("{name: wsd, cooldown_steps: 3, timescale: 4}", "timescale: has no effect without name:"),
        ("{name: rsqrt, end_factor: 0.1}", "end_factor: has no effect with name: rsqrt without a"),
        ("{milestones: [1]}", "milestones: has no effect without name: steps."),
        (
            "{name: steps, milestones: [0.5, 1, 1.5]}",
            "milestones: 1, 1.5 are never reached: the run has 1 epoch, counted from 0.",
        ),
        ("{name: constant, factor: 0.5}", "factor: has no effect without name: steps."),
        ("{warmup_steps: 1, warmup_epochs: 1}", "warmup_epochs: warm-up lasts for"),
    ],
)
@pytest.mark.parametrize("place", ["schedule", "optimizer.groups[0].schedule"])
def test_a_key_without_effect_is_named_with_its_place(place: str, keys: str, message: str) -> None:
    group = f"optimizer.groups=[{{match: ['image.*'], schedule: {keys}}}]"
    line = refusal(f"schedule={keys}" if place == "schedule" else group)
    assert f"{place}.{message}" in line


@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_warm_up_and_cooldown_that_exceed_the_run_are_refused(unit: str) -> None:
    keys = f"{{name: wsd, warmup_{unit}: 6, cooldown_{unit}: 5}}"
    line = refusal(f"train.{unit}=10", f"schedule={keys}")
    assert (
        f"schedule.cooldown_{unit}: warm-up (6 {unit}) and cooldown (5) are longer than the run"
        f" (train.{unit}: 10). Shorten one of them, or train longer." in line
    )
    parse_recipe(SMALL, "small.yaml", [f"train.{unit}=11", f"schedule={keys}"])
