"""Checkpoints of runs whose weights are divided among processes: `step_N.pt` holds what is the same
everywhere and names the files of slices next to it, `step_N.shard-K-of-W.pt`, one for each process.

Slices are of the first dimension, so that joining them in order gives the whole tensors: what is
read does not depend on how many processes wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd_cli.builders.weight_files import first_line, load_pickled
from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.distributed.sharding import is_divided, joined, joined_later, own_slice
from vlkd_cli.errors import CheckpointError

Gather = Callable[[str | None], list[str | None]]
_STEP, _SHARD = re.compile(r"step_(\d+)\.pt"), re.compile(r"step_(\d+)\.shard-\d+-of-\d+\.pt")


def is_shard(path: Path) -> bool:
    """Whether a file of this name holds slices."""
    return _SHARD.fullmatch(path.name) is not None


def step_files(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their steps, without their shards."""
    return sorted(path for path in folder.glob("step_*.pt") if _STEP.fullmatch(path.name))


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or shard; -1 for other files."""
    found = _STEP.fullmatch(path.name) or _SHARD.fullmatch(path.name)
    return int(found[1]) if found else -1


def mark_slice(copy: Tensor) -> None:
    """Let a plain tensor count as this process's slice of a divided one."""
    copy.is_slice = True  # type: ignore[attr-defined]


def separated(content: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """Nested dicts without the divided tensors, and this process's slices of those alone."""
    whole: dict[str, object] = {}
    slices: dict[str, object] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            whole[name], inner = separated(value)
            if inner:
                slices[name] = inner
        elif isinstance(value, Tensor) and is_divided(value):
            slices[name] = own_slice(value).clone()
        elif isinstance(value, Tensor) and hasattr(value, "is_slice"):
            slices[name] = value.detach()  # without the mark
        else:
            whole[name] = joined(value) if isinstance(value, Tensor) else value
    return whole, slices


def write_shards(
    slices: Mapping[str, object],
    target: Path,
    step: int,
    write: Callable[[Mapping[str, object], Path], None],
    gather: Gather = gather_objects,
) -> list[str]:
    """Write this process's slices next to a checkpoint; the names of all processes' files.

    Args:
        gather: shows every process the problems of all.

    Raises:
        CheckpointError: on every process, where one could not write.
    """
    names = [
        f"{target.stem}.shard-{number}-of-{world_size()}.pt"
        for number in range(1, world_size() + 1)
    ]
    problem = None
    try:
        write({"step": step, "slices": slices}, target.parent / names[rank()])
    except CheckpointError as error:
        problem = str(error)
    for found in gather(problem):
        if found is not None:
            raise CheckpointError(found)
    return names


def join_shards(content: dict[str, Any], path: Path) -> None:
    """Put the slices of a checkpoint's shards into what was read of it, as tensors that are joined
    when they are needed (`joined`).

    Raises:
        CheckpointError: a shard is missing, damaged or of another step.
    """
    names = content.get("shards") or []
    if not names:
        return
    parts = []
    for name in names:
        file = path.parent / Path(str(name)).name
        if not file.is_file():
            raise CheckpointError(
                f"{path} needs {file.name} next to it, which is missing. Copy the files"
                f" step_{content['step']:08d}.shard-*.pt along with it."
            )
        try:
            part: Any = load_pickled(file, mapped=True)
            fits = part["step"] == content["step"]
            parts.append(part["slices"])
        # Damaged bytes make the unpickler fail in any way there is.
        except Exception as error:
            raise CheckpointError(f"{file} is damaged ({first_line(error)}).") from error
        if not fits:
            raise CheckpointError(f"{file} is of another checkpoint than {path}.")
    _join(content, parts)


def remove_unused_shards(folder: Path) -> None:
    """Remove the shards that no checkpoint of a folder names; none where one cannot be read."""
    shards = [path for path in folder.glob("step_*.pt") if is_shard(path)]
    if not shards:
        return
    used: set[str] = set()
    for path in folder.glob("*.pt"):
        if not is_shard(path):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                used.update(content.get("shards") or ())
            # Damaged bytes make the unpickler fail in any way there is.
            except Exception:
                return  # the file may name any of them
    for path in shards:
        if path.name not in used:
            path.unlink(missing_ok=True)


def _join(whole: dict[str, Any], parts: Sequence[Mapping[str, Any]]) -> None:
    for name, first in parts[0].items():
        own = [part[name] for part in parts]
        if isinstance(first, Mapping):
            _join(whole.setdefault(name, {}), own)
        else:
            whole[name] = joined_later(own)
