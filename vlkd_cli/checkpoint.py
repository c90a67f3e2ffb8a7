"""Checkpoints: atomic to write, safe to read, exact to resume from. The only module that knows
their format, and which file and which weights a run means."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

import vlkd_cli
from vlkd_cli.builders.weight_files import first_line, load_pickled
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.checkpoint_shards import (
    Gather,
    is_shard,
    join_shards,
    remove_unused_shards,
    separated,
    step_files,
    write_shards,
)
from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.distributed.sharding import joined
from vlkd_cli.errors import CheckpointError
from vlkd_cli.recipe.load import TRUST_OPTION, recipe_of_checkpoint
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.types import NonNegativeInt, PositiveInt
from vlkd_cli.remote_runs import local_run

FORMAT = 2
BEFORE_COOLDOWN = "before_cooldown.pt"
"""Where a longer run continues: the last checkpoint whose rates do not depend on the length."""
State = dict[str, Tensor]
Choice = Literal["best", "last"]


class Source(NamedTuple):
    """Which weights a command took; what it prints, and what result files name as `model`."""

    run: str
    file: str
    step: int
    averaged: bool

    def __str__(self) -> str:
        return f"{self.file}, step {self.step}{', averaged weights' if self.averaged else ''}"


@dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, arbitrary_types_allowed=True, extra="forbid"),
)
class Checkpoint:
    """Everything that a run needs to continue, and that others take from it. Frozen weights are not
    in
    it: they come from their builders.

    Args:
        step: optimizer steps done.
        recipe: as JSON.
        global_batch: samples of one batch over all processes.
        evaluated: whether what was due at this step has been evaluated.
        best: value of `train.best` so far.
        waited: evaluations of `train.best` in a row that were no better.
        towers: of each tower that learns, by its name, trainable parameters and buffers.
        followers, distillers: state dicts of the composition's parts.
        ema: averages of the trainable parameters, by their names in the composition; empty without.
        optimizer: state of each parameter, by its name in the composition (format 1: its position).
        files: what a run made in addition to weights, by its path in the run folder, e.g. a
            tokenizer.
        shards: of a run whose weights were divided among processes, the files next to it that hold
            the slices of each; they are joined when a tensor is needed.
        path: where it was read from; not written.
    """

    step: NonNegativeInt
    recipe: str
    world_size: PositiveInt
    global_batch: PositiveInt
    towers: dict[str, State]
    followers: State = field(default_factory=dict)
    distillers: State = field(default_factory=dict)
    ema: State = field(default_factory=dict)
    optimizer: dict[str, dict[str, object]] = field(default_factory=dict)
    scaler: dict[str, object] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    evaluated: bool = True
    best: float | None = None
    waited: NonNegativeInt = 0
    skipped_steps: NonNegativeInt = 0
    format: int = FORMAT
    version: str = vlkd_cli.__version__
    shards: list[str] = field(default_factory=list)
    path: Path | None = None

    @staticmethod
    def load(path: Path) -> Checkpoint:
        """Read a checkpoint onto the CPU, mapped into memory. Only tensors and plain values are
        unpickled, and nothing that the recipe inside names is built.

        Raises:
            CheckpointError: it is missing, damaged, of another format, or not a checkpoint.
        """
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}. Name a run folder or a .pt file.")
        try:
            content = load_pickled(path, mapped=True)
        # Damaged bytes make the unpickler fail in any way there is.
        except Exception as error:
            raise CheckpointError(
                f"{path} is damaged or not a checkpoint ({_first_line(error)}).{_others(path)}"
            ) from error
        if not isinstance(content, dict) or not {"format", "towers"} <= set(content):
            raise CheckpointError(
                f"{path} is not a checkpoint of vlkd. Use `pretrained` for plain weights."
            )
        if not isinstance(content["format"], int) or content["format"] not in (1, FORMAT):
            raise CheckpointError(
                f"{path} is a checkpoint of format {content['format']!r}; this vlkd"
                f" ({vlkd_cli.__version__}) reads formats 1 and {FORMAT}. Use the vlkd that wrote"
                " it."
            )
        try:
            if content["format"] == 1:
                content = _from_format_1(content)
            join_shards(content, path)
            return Checkpoint(**{**content, "path": path})
        except (ValidationError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged: {_problem(error)}.{_others(path)}"
            ) from error

    def save(
        self,
        folder: Path,
        *,
        is_best: bool = False,
        before_cooldown: bool = False,
        keep: int = 1,
        gather: Gather = gather_objects,
    ) -> Path:
        """Write `step_N.pt` and point `last.pt` (and `best.pt`, `before_cooldown.pt`) at it; of
        the `step_*.pt` files all but the newest `keep` are deleted.

        A file appears under its name only when it is whole: a kill or a full disk while saving
        leaves the former ones as they were. Where weights are divided among processes, all call it:
        each writes its slices to `step_N.shard-K-of-W.pt`, and then the first one the rest.

        Args:
            gather: shows every process the problems of all.

        Raises:
            CheckpointError: the disk is full or the folder cannot be written.
        """
        target = folder / f"step_{self.step:08d}.pt"
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        del content["path"], content["shards"]
        content, slices = separated(content)
        if slices:
            content["shards"] = write_shards(slices, target, self.step, _write, gather)
        if slices and not is_main():
            return target
        _write(content, target)
        try:
            names = {"last.pt": True, "best.pt": is_best, BEFORE_COOLDOWN: before_cooldown}
            for name in (name for name, applies in names.items() if applies):
                point(folder / name, target)
        except OSError as error:
            raise _unsaved(target, error) from error
        for old in step_files(folder)[:-keep]:
            old.unlink(missing_ok=True)
        remove_unused_shards(folder)
        return target

    def tower(self, name: str, averaged: bool = True, *, whole: bool = True) -> State:
        """The state of a tower or follower, with the averaged weights if the run tracked an
        average.

        Args:
            whole: join weights that were divided among processes; False: the caller reads the rows
                that it needs (`slice_of`).

        Raises:
            CheckpointError: the checkpoint holds no such tower.
        """
        if name in self.towers:
            average = _below(f"towers.{name}", self.ema) if averaged else {}
            state = {key: average.get(key, value) for key, value in self.towers[name].items()}
        elif not (state := _below(name, self.followers)):
            held = [*self.towers, *sorted({key.partition(".")[0] for key in self.followers})]
            raise CheckpointError(
                f"{self.path or 'this checkpoint'} holds no trained tower '{name}'."
                f"{did_you_mean(name, held)} It holds: {', '.join(held) or 'none'}."
            )
        return {key: joined(value) for key, value in state.items()} if whole else state

    def rows_per_process(self, processes: int) -> int:
        """Rows of a batch on each process when the run continues on so many: the global batches
        stay as they were.

        Raises:
            CheckpointError: they cannot be divided evenly.
        """
        rows, rest = divmod(self.global_batch, processes)
        if rest:
            possible = [n for n in range(1, self.global_batch + 1) if self.global_batch % n == 0]
            near = sorted(sorted(possible, key=lambda n: abs(n - processes))[:4])
            raise CheckpointError(
                f"the run's batches of {self.global_batch} samples cannot be divided among"
                f" {processes} processes. It was trained on {self.world_size}; resume it with"
                f" {', '.join(map(str, near))}."
            )
        return rows

    def read_recipe(
        self, overrides: Sequence[str] = (), *, trust: bool = False, remedy: str = TRUST_OPTION
    ) -> Recipe:
        """The recipe of the run.

        Args:
            overrides: the user's own `key=value` changes of it.
            trust: let it name code from outside vlkd, see `recipe.trust`.
            remedy: what to do for someone who trusts it.

        Raises:
            RecipeError: it is not a recipe, or it names code that is not trusted.
        """
        name = str(self.path or "this checkpoint")
        return recipe_of_checkpoint(self.recipe, name, overrides, foreign=not trust, remedy=remedy)

    @property
    def source(self) -> Source:
        """Which run, file, step and weights a reader of this checkpoint takes."""
        assert self.path is not None
        folder = self.path.absolute().parent
        run = folder.parent if folder.name == "checkpoints" else folder
        return Source(run.name, str(self.path), self.step, bool(self.ema))


def resolve(run: str | Path, checkpoint: Choice | None = None) -> Path:
    """The checkpoint of a run: the chosen one, by default its best if there is one, else its last;
    a file is returned itself. Anything at a URL is copied first.

    Raises:
        CheckpointError: there is none, or a file is named and a choice made as well.
    """
    path = Path(local_run(str(run))).expanduser()
    if path.is_file():
        if checkpoint is not None:
            raise CheckpointError(
                f"{path} is one checkpoint, so `checkpoint: {checkpoint}` has nothing to choose."
                " Name the run folder, or leave the choice out."
            )
        return path
    for folder in (path / "checkpoints", path):
        for choice in ("best", "last") if checkpoint is None else (checkpoint,):
            if (folder / f"{choice}.pt").is_file():
                return folder / f"{choice}.pt"
    if not path.exists():
        raise CheckpointError(f"no run or checkpoint at {path}. Name a run folder or a .pt file.")
    raise CheckpointError(
        f"{path} holds no checkpoint (checkpoints/{checkpoint or 'last'}.pt)."
        f" {_why_missing(path, checkpoint)}"
    )


def load_problem(error: Exception) -> str:
    """What is wrong when a module does not take a state, without torch's heading."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]).rstrip(":. ")


def _why_missing(path: Path, checkpoint: Choice | None) -> str:
    if checkpoint == "best" and (path / "checkpoints" / "last.pt").is_file():
        return "Its recipe names no `train.best`, or that was never evaluated; use `last`."
    return "Was it stopped before its first save?"


def _from_format_1(content: Mapping[str, Any]) -> dict[str, Any]:
    """Format 1 had no batch, version and files, and torch's own optimizer state, by position."""
    train = json.loads(content["recipe"])["train"]
    state = content["optimizer"]["state"]
    return {
        **content,
        "global_batch": train["batch_size"] * content["world_size"],
        "optimizer": {str(position): values for position, values in state.items()},
        "version": "0.1.0",
    }


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _write(content: Mapping[str, object], target: Path) -> None:
    """Write what torch.save takes, so that the file appears under its name when it is whole.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    partial = target.with_suffix(".partial")
    written: _Writes | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_partial_files(target)
        with partial.open("wb") as file:
            written = _Writes(file)
            torch.save(content, written)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            _remove_partial_files(target)
        # torch's writer reports at which position it stopped; why is what the file reported.
        raise _unsaved(target, (written.error if written else None) or error) from error


def _unsaved(target: Path, cause: BaseException) -> CheckpointError:
    return CheckpointError(
        f"could not save {target.name} in {target.parent}: {_first_line(cause)}. Earlier"
        " checkpoints there are whole; free space, then continue with --resume."
    )


class _Writes:
    """A file that remembers why writing to it failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _remove_partial_files(target: Path) -> None:
    """What a kill has left, of any checkpoint; of shards, which other processes may be writing,
    only the file's own."""
    pattern = f"{target.stem}.partial" if is_shard(target) else "*.partial"
    for left in target.parent.glob(pattern):
        left.unlink(missing_ok=True)


def point(name: Path, target: Path) -> None:
    """Make `name` the same file as `target`, atomically; a hard link where the file system has
    them, else a copy."""
    partial = name.with_suffix(".partial")
    try:
        os.link(target, partial)
    except OSError:
        shutil.copyfile(target, partial)
    partial.replace(name)


def _others(path: Path) -> str:
    names = [
        other.name
        for other in sorted(path.parent.glob("*.pt"))
        if not other.samefile(path) and not is_shard(other)
    ]
    return f" Others there: {', '.join(names)}." if names else ""


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "it"
        return f"{key}: {first['msg'].rstrip('.').lower()}"
    return f"{_first_line(error)} is missing" if isinstance(error, KeyError) else _first_line(error)


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
