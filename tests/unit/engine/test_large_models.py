"""Runs of models that are too large to be trained as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import IMAGE, TEXT, differences, final_state, tiny_recipe, train
from vlkd_cli.errors import UserError

DEEP = {**IMAGE, "config": {**IMAGE["config"], "layers": 3}}  # type: ignore[dict-item]
DROPPING = {**TEXT, "head": {"name": "linear", "width": 16, "dropout": 0.3}}
SHORT = {"epochs": 1, "steps": 2}


def state_after(folder: Path, run: str, **settings: Any) -> dict[str, Any]:
    recipe = tiny_recipe(
        towers={"image": DEEP, "text": DROPPING}, train={**SHORT, "ema": 0.9, **settings}
    )
    state = final_state(train(folder, recipe, run))
    del state["recipe"]
    return state


@pytest.mark.parametrize("settings", [{}, {"chunk": 3, "accumulate": 2}])
def test_a_run_that_recomputes_activations_ends_with_the_same_weights(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    stored = state_after(tmp_path, "stored", **settings)
    recomputed = state_after(tmp_path, "recomputed", checkpoint_activations=True, **settings)
    assert differences(stored, recomputed) == []


def test_a_frozen_tower_of_a_run_stays_in_16_bits_where_it_stays_frozen(tmp_path: Path) -> None:
    towers = {"image": IMAGE, "text": {**TEXT, "train": "head", "dtype": "bf16"}}
    towers["text"]["head"] = {"name": "linear", "width": 16}
    run = train(tmp_path, tiny_recipe(towers=towers, train=SHORT))
    again = {"image": IMAGE, "text": {"run": str(run), "train": "none"}}
    second = train(tmp_path, tiny_recipe(towers=again, train=SHORT), "second")
    assert final_state(second)["step"] == 2
    trained = {"image": IMAGE, "text": {"run": str(run), "train": "all"}}
    third = train(tmp_path, tiny_recipe(towers=trained, train=SHORT), "third")
    held = final_state(third)["towers"]["text"]
    assert {value.dtype.itemsize for value in held.values() if value.ndim > 1} == {4}
    trained["text"]["dtype"] = "bf16"
    with pytest.raises(UserError, match="dtype: is for frozen backbones"):
        train(tmp_path, tiny_recipe(towers=trained, train=SHORT), "fourth")
