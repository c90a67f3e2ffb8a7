from __future__ import annotations

import argparse
import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlkd_cli.builders.weight_files import load_pickled, read_weights
from vlkd_cli.errors import WeightsError

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}


def prefixed(prefix: str, **more: Any) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in STATE.items()} | more


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
        {"whatever_it_is_called": STATE, "epoch": 3},
        {"model": {"state_dict": STATE}},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("model."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("model._orig_mod.module."),
        prefixed("_forward_module.model."),
        prefixed("module.", n_averaged=torch.tensor(3)),
        {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
        {"state_dict_ema": prefixed("module._orig_mod.")},
    ],
)
def test_weights_are_read_out_of_their_wrapping(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    read = read_weights(tmp_path / "a.pth", "model")
    assert set(read) == set(STATE)
    assert read["weight"].equal(STATE["weight"])


def test_what_compiling_a_part_put_into_its_names_is_taken_out(tmp_path: Path) -> None:
    names = ["visual._orig_mod.conv.weight", "visual.blocks.0._checkpoint_wrapped_module.bias"]
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "a.pth")
    assert list(read_weights(tmp_path / "a.pth", "model")) == [
        "visual.conv.weight",
        "visual.blocks.0.bias",
    ]


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"state_dict": STATE, "state_dict_ema": averaged}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth", "model")["bias"].equal(torch.ones(2))


def test_two_models_without_a_known_name_are_refused(tmp_path: Path) -> None:
    torch.save({"student": STATE, "teacher": STATE, "epoch": 1}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"several models \('student', 'teacher'\)"):
        read_weights(tmp_path / "a.pth", "model")


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert set(read_weights(tmp_path / "a.safetensors", "model")) == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"no weights", b"PK\x03\x04broken", b"\x80\x02}q\x00."[:4]])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_damaged_file_is_one_line(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        WeightsError, match=r"model: '.*' cannot be read as weights \(.*\)\. Replace the file\."
    ) as error:
        read_weights(tmp_path / name, "model")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match="is a folder, pipe, socket or device. Name a file"):
        read_weights(tmp_path / name, "model")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 133\n",
            "is a Git LFS pointer",
        ),
        (b"\n<!DOCTYPE html><title>404</title>", "is a web page"),
    ],
)
def test_a_file_used_instead_of_another_is_named(
    content: bytes, reason: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"model: '.*{name}' {reason}") as error:
        read_weights(tmp_path / name, "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_object_among_the_tensors_is_named_with_what_to_do(zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": STATE, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        WeightsError, match=r"holds 'argparse\.Namespace' next to its tensors.*torch\.save\("
    ) as error:
        read_weights(tmp_path / "a.pth", "model")
    assert "\n" not in str(error.value) and "\x1b" not in str(error.value)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        read_weights(tmp_path / "a.pth", "model")


def test_a_state_that_holds_itself_is_one_line(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(tmp_path / "a.pth", "model")


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (16 << 20))
    with pytest.raises(ValueError, match="compressed"):
        load_pickled(tmp_path / "a.pth")
