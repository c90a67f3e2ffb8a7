from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlkd_cli.builders.cache import cache_folder
from vlkd_cli.builders.weights import fit_weights, locate, read_weights, weights_file
from vlkd_cli.errors import WeightsError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize("wrapping", ["none", "state_dict", "model", "module."])
def test_weights_are_read_out_of_their_wrapping(wrapping: str, tmp_path: Path) -> None:
    state: dict[str, object] = dict(STATE)
    if wrapping == "module.":
        state = {f"module.{name}": tensor for name, tensor in STATE.items()}
    elif wrapping != "none":
        state = {wrapping: STATE, "epoch": 3}
    torch.save(state, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth", "model")["weight"].equal(STATE["weight"])


def test_safetensors_and_torchscript_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors", "model")) == {"weight", "bias"}
    torch.jit.save(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)), tmp_path / "a.pt")
    assert set(read_weights(tmp_path / "a.pt", "model")) == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04broken"])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_said_in_one_line(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"model: '.*' cannot be read as weights \(.*\)\. Replace the file\."
    ) as error:
        read_weights(tmp_path / name, "model")
    assert "\n" not in str(error.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(tmp_path / "a.pth", "model")


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


def test_a_folder_stands_for_the_weights_in_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds no weights\. Put model\.safetensors"):
        weights_file(tmp_path, "model")
    (tmp_path / "first.pth").touch()
    assert weights_file(tmp_path, "model").name == "first.pth"
    (tmp_path / "second.pth").touch()
    with pytest.raises(WeightsError, match=r"several weights \(first\.pth, second\.pth\)"):
        weights_file(tmp_path, "model")
    (tmp_path / "model.safetensors").touch()
    assert weights_file(tmp_path, "model").name == "model.safetensors"


def test_a_missing_file_or_package_is_named() -> None:
    with pytest.raises(WeightsError, match=r"no file or folder 'nowhere/a\.pth'"):
        locate("nowhere/a.pth", "model")
    with pytest.raises(WeightsError, match="no installed package 'no_such_package'"):
        locate("package:no_such_package", "model")
    with pytest.raises(WeightsError, match="carries no model"):
        locate("package:ftfy", "model")


def test_the_cache_folder_is_the_keys_then_the_environments_then_the_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "environment"))
    assert cache_folder("given") == Path("given")
    assert cache_folder() == tmp_path / "environment"
    monkeypatch.delenv("VLKD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "vlkd"
