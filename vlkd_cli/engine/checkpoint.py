"""Checkpoints: atomic to write, safe to read, exact to continue from."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from vlkd_cli.builders.weight_files import load_pickled
from vlkd_cli.errors import CheckpointError

FORMAT = 1


class Checkpoints:
    """The checkpoints of one run: `step_*.pt`, of which the newest `keep` stay, and `last.pt` and
    `best.pt` beside them.

    A file appears under its name only when it is whole: a kill or a full disk while saving leaves
        the former ones as they were.
    """

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, state: dict[str, Any], *, is_best: bool = False) -> Path:
        """Write the state; `state["step"]` names the file.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written; former checkpoints
                are whole.
        """
        target = self.folder / f"step_{state['step']:08d}.pt"
        partial = target.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            for name in ["last.pt", *(["best.pt"] if is_best else [])]:
                _point(self.folder / name, target)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError of its file writer.
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"could not save {target.name} in {self.folder}: {_first_line(error)}. Earlier"
                " checkpoints there are whole; free space or choose another --run folder, then"
                " continue with --resume."
            ) from error
        for old in sorted(self.folder.glob("step_*.pt"))[: -self.keep]:
            old.unlink(missing_ok=True)
        return target


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Only tensors and plain values are unpickled.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    if path.is_dir():
        path = newest(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}. Give a run folder or a .pt file.")
    try:
        state = load_pickled(path)
    except Exception as error:
        others = [
            other.name for other in sorted(path.parent.glob("*.pt")) if not other.samefile(path)
        ]
        hint = f" Others there: {', '.join(others)}." if others else ""
        raise CheckpointError(
            f"{path} is damaged or no checkpoint ({_first_line(error)}).{hint}"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "towers" not in state:
        raise CheckpointError(f"{path} is no vlkd checkpoint of format {FORMAT}.")
    return state


def newest(run: Path) -> Path:
    """The last checkpoint of a run folder.

    Raises:
        CheckpointError: it has none.
    """
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    if not (folder / "last.pt").is_file():
        raise CheckpointError(
            f"{run} holds no checkpoint (checkpoints/last.pt). Was it stopped before its first"
            " save?"
        )
    return folder / "last.pt"


def _point(name: Path, target: Path) -> None:
    """Make `name` the same file as `target`, atomically; a hard link where the file system has
    them, else a copy."""
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(target, partial)
    except OSError:
        import shutil

        shutil.copyfile(target, partial)
    partial.replace(name)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
