"""Adapters in both towers: a step is the same in chunks and on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import IMAGE, TEXT, final_state, tiny_recipe, train, write_recipe
from tests.unit.engine.test_processes import vlkd

BOTH = ("--set", "train.batch_size=16")


def adapted(**sections: Any) -> dict[str, Any]:
    lora = {"name": "lora", "rank": 2}
    return tiny_recipe(
        **{
            "towers": {"image": {**IMAGE, "adapter": lora}, "text": {**TEXT, "adapter": lora}},
            "data": {"augment": {"name": "none"}},
            "optimizer": {"name": "sgd", "lr": 0.01},
            **sections,
        }
    )


def test_adapters_learn_the_same_under_chunk(tmp_path: Path) -> None:
    whole, pieces = (
        final_state(train(tmp_path, adapted(train={"steps": 3, **more}), name))["towers"]
        for name, more in (("whole", {}), ("pieces", {"chunk": 4}))
    )
    for tower, state in whole.items():
        assert all("vlkd_" in name for name in state)
        for name, value in state.items():
            torch.testing.assert_close(pieces[tower][name], value, rtol=1e-4, atol=2e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_adapters_learn_the_same_on_two_ranks(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, adapted(train={"epochs": 1}))
    for words in (["--cpu-workers", "2", "--run", "two"], ["--run", "one", *BOTH]):
        code, _, err = vlkd(tmp_path, "train", recipe, "--quiet", *words)
        assert code == 0, err
    one, two = (final_state(tmp_path / name)["towers"] for name in ("one", "two"))
    for tower, state in one.items():
        for name, value in state.items():
            torch.testing.assert_close(two[tower][name], value, rtol=1e-4, atol=2e-6)
