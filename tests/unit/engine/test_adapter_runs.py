"""Runs whose text tower learns by an adapter, through the command line: stopped, continued, and
what their checkpoints hold."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.encoders import write_encoder
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, differences, final_state, tiny_recipe, write_recipe
from vlkd_cli.recipe import adapters as adapter_rules

pytestmark = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "dropout": 0.1},
    "bottleneck": {"name": "bottleneck"},
    # Its random matrices are fixed and must come back.
    "vera": {"name": "vera", "rank": 8},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_one_that_never_stopped(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    # BERT's own dropout is on, so a resumed run must sample what the whole one sampled.
    text = {
        "builder": "adapters",
        "model": str(write_encoder(tmp_path / "bert")),
        "adapter": METHODS[method],
    }
    towers = {"image": IMAGE, "text": {**text, "head": {"name": "linear", "width": 16}}}
    write_recipe(tmp_path, tiny_recipe(towers=towers, train={"epochs": 1, "steps": 6}))
    assert leaves(["train", "tiny.yaml", "--run", "whole"]) == 0
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 3)
        assert leaves(["train", "tiny.yaml", "--run", "cut"]) == 128 + signal.SIGINT
    middle = final_state(tmp_path / "cut")
    assert middle["step"] == 3
    assert leaves(["train", "--resume", "cut"]) == 0
    whole, resumed = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert resumed["step"] == 6 and differences(whole, resumed) == []
    assert differences(middle["towers"], whole["towers"]) != [], (
        "the weights must have moved after the stop"
    )

    for state in (middle, whole):
        assert all(".vlkd" in name or name.startswith("head.") for name in state["towers"]["text"])
        assert any(".vlkd" in name for name in state["towers"]["text"])
    held = sum(tensor.numel() for tensor in whole["towers"]["text"].values())
    assert (
        held
        < sum(
            tensor.numel() for tensor in load_file(tmp_path / "bert" / "model.safetensors").values()
        )
        / 4
    )


def _interrupt_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after this optimizer step."""
    from vlkd_cli.engine.run import Run

    real = Run.due

    def due(self: Any, count: int) -> Any:
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, count)

    patch.setattr(Run, "due", due)
