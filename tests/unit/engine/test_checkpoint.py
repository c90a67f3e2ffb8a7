from __future__ import annotations

import builtins
import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from vlkd_cli.engine.checkpoint import Checkpoints, load_checkpoint, newest
from vlkd_cli.errors import CheckpointError


def state(step: int) -> dict[str, Any]:
    return {"step": step, "towers": {"image": {"weight": torch.full((3,), float(step))}}}


def test_last_best_and_the_newest_steps_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(state(step), is_best=step == 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "last.pt",
        "step_00000002.pt",
        "step_00000003.pt",
    ]
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 3
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 2


def test_best_survives_when_its_step_file_is_dropped(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(state(step), is_best=step == 1)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1


class FullDisk:
    """A file on a disk that takes 100 bytes."""

    def __init__(self, file: Any) -> None:
        self._file, self._room = file, 100

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def test_a_full_disk_is_one_line_and_leaves_the_former_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *a, **k: (
            FullDisk(real(self, mode, *a, **k)) if "w" in mode else real(self, mode, *a, **k)
        ),
    )
    with pytest.raises(
        CheckpointError,
        match=r"could not save step_00000002.pt .* Earlier checkpoints there are whole",
    ) as caught:
        checkpoints.save(state(2))
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_kill_while_saving_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(state(2))
    assert load_checkpoint(newest(tmp_path))["step"] == 1


def test_a_damaged_checkpoint_names_the_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").write_bytes((tmp_path / "step_00000002.pt").read_bytes()[:200])
    with pytest.raises(
        CheckpointError,
        match=r"last.pt is damaged .* Others there: step_00000001.pt, step_00000002.pt",
    ):
        load_checkpoint(tmp_path / "last.pt")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "towers": {}, "evil": builtins.print}, path)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is no vlkd checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "missing.pt")


def test_one_flipped_byte_in_a_weight_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "towers": {"image": {"weight": torch.zeros(10_000)}}}, path)
    assert load_checkpoint(path)["towers"]["image"]["weight"].sum() == 0
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="last.pt is damaged .*checksum"):
        load_checkpoint(path)
