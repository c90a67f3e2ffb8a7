from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vlkd_cli.builders.weights import fit_weights, write_weights
from vlkd_cli.errors import WeightsError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


def test_half_precision_weights_fill_a_float32_module() -> None:
    module = nn.Linear(3, 2)
    fit_weights(
        module, {name: tensor.half() for name, tensor in STATE.items()}, "model", source="file"
    )
    assert module.weight.dtype == torch.float32
    assert module.weight.equal(STATE["weight"])


def test_the_first_mismatch_is_named_with_its_shapes() -> None:
    module = nn.Linear(4, 2)
    with pytest.raises(
        WeightsError, match=r"'weight' is \[2, 3\] in them and \[2, 4\] in the model"
    ):
        fit_weights(module, STATE, "model", source="file")
    with pytest.raises(WeightsError, match=r"'bias' \[2\] is not in them"):
        fit_weights(nn.Linear(3, 2), {"weight": STATE["weight"]}, "model", source="file")
    with pytest.raises(WeightsError, match=r"the model has no 'extra' \[1\]"):
        fit_weights(nn.Linear(3, 2), {**STATE, "extra": torch.zeros(1)}, "model", source="file")
    fit_weights(
        nn.Linear(3, 2),
        {**STATE, "extra": torch.zeros(1)},
        "model",
        source="file",
        ignore=lambda name: name == "extra",
    )


def test_names_below_one_foreign_prefix_fit() -> None:
    module = nn.Linear(3, 2)
    state = {f"student.net.{name}": tensor for name, tensor in STATE.items()}
    fit_weights(module, {**state, "criterion.scale": torch.ones(1)}, "model", source="file")
    assert module.weight.equal(STATE["weight"])


def test_two_models_in_one_file_are_named_instead_of_one_being_chosen() -> None:
    state = {
        f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in STATE.items()
    }
    with pytest.raises(WeightsError, match=r"several models \('student\.', 'teacher\.'\)"):
        fit_weights(nn.Linear(3, 2), state, "model", source="file")


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    tied = torch.arange(3.0)
    write_weights({"a": tied, "b": tied}, tmp_path / "a.safetensors")
    read = load_file(tmp_path / "a.safetensors")
    assert read["a"].equal(tied) and read["b"].equal(tied)
