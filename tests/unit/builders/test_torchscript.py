from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkd_cli.builders.torchscript import is_torchscript, read_torchscript
from vlkd_cli.builders.weight_files import read_weights
from vlkd_cli.errors import WeightsError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(3, 2).half()
        self.norm = nn.BatchNorm2d(4)
        self.convolutions = nn.ModuleList([nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 2)])
        self.attention = nn.MultiheadAttention(8, 2)
        self.scale = nn.Parameter(torch.arange(3.0))
        self.register_buffer("resolution", torch.tensor(224))
        self.sizes = [1, 2]

    def forward(self, images: Tensor) -> Tensor:
        total = torch.zeros(1)
        for convolution in self.convolutions:
            total = total + convolution(images) * self.sizes[0]
        return self.norm(total) * self.scale.sum()


class Writes:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(Small()).save(str(tmp_path / "a.pt"))
    return tmp_path / "a.pt"


def repacked(source: Path, target: Path, **changed: bytes) -> Path:
    """The archive with members replaced, by the last part of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            key = name.partition("/")[2].replace("/", "_").replace(".", "_")
            new.writestr(name, changed.get(key, old.read(name)))
    return target


def test_the_tensors_are_those_of_torch(archive: Path) -> None:
    expected = torch.jit.load(str(archive)).state_dict()
    read = read_torchscript(archive)
    assert set(read) == set(expected) and len(read) == 17
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and read[name].equal(tensor)
    assert set(read_weights(archive, "model")) == set(expected)


def test_only_what_torch_jit_wrote_is_taken_for_such_an_archive(
    archive: Path, tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    assert is_torchscript(archive)
    assert not is_torchscript(tmp_path / "plain.pt")


def test_torch_never_loads_such_an_archive_itself(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **keys: Any) -> None:
        raise AssertionError("torch.jit.load runs what is in the archive")

    monkeypatch.setattr(torch.jit, "load", refuse)
    assert read_weights(archive, "model")["scale"].tolist() == [0, 1, 2]


def test_nothing_of_an_archive_runs(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bad = repacked(archive, tmp_path / "bad.pt", data_pkl=pickle.dumps(Writes(mark), protocol=2))
    with pytest.raises(WeightsError, match=r"bad\.pt' holds '(posix|nt)\.system' next to"):
        read_weights(bad, "model")
    assert not mark.exists()


def test_a_tensor_that_reaches_beyond_its_bytes_is_refused(archive: Path, tmp_path: Path) -> None:
    short = repacked(archive, tmp_path / "short.pt", data_0=b"\0\0")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(short, "model")


def test_modules_that_hold_each_other_end_in_one_line(archive: Path, tmp_path: Path) -> None:
    # Sixty modules, each twice in the one before: more names than could ever be read.
    module = pickle.GLOBAL + b"__torch__.M\nModule\n" + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    chain = module + pickle.EMPTY_DICT + pickle.BUILD
    chain = pickle.PROTO + b"\x02" + chain + pickle.BINPUT + b"\0"
    for number in range(60):
        inner = pickle.BINGET + bytes([number])
        pairs = b"X\x01\0\0\0a" + inner + b"X\x01\0\0\0b" + inner
        chain += module + pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS + pickle.BUILD
        chain += pickle.BINPUT + bytes([number + 1])
    bad = repacked(archive, tmp_path / "bad.pt", data_pkl=chain + pickle.STOP)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(bad, "model")
