"""Checkpoints written while training continues: the state is copied between two steps, and a thread
writes the copy.

A thread and not a process: forking next to the threads of CUDA or gloo is unsafe, and writing
releases the interpreter's lock. The files are those of `Checkpoint.save`, each of which appears
when it is whole; a process that is killed loses the save in flight and nothing else. Where weights
are divided among processes, the thread of each writes its slices, and the threads agree through a
store: a collective of a thread would meet those of the training.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.checkpoint_shards import Gather, mark_slice
from vlkd_cli.distributed.collectives import gather_objects
from vlkd_cli.distributed.sharding import is_divided, own_slice
from vlkd_cli.distributed.store import Exchange
from vlkd_cli.errors import CheckpointError

_Stored = dict[tuple[torch.device, int, torch.Size, tuple[int, ...], torch.dtype], Tensor]
"""Copies by what they are copies of."""


class Saver:
    """Writes the checkpoints of a run, at most one at a time.

    Args:
        folder: of the checkpoints.
        keep: number of the newest checkpoints that are not deleted.
        in_background: return from `save` when the state is copied; takes the memory of one more
            state.
        then: called after each checkpoint was written, in the same thread.
        is_divided: every process saves its part, at the same steps.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 1,
        in_background: bool = False,
        then: Callable[[], None] | None = None,
        is_divided: bool = False,
    ) -> None:
        self.folder, self.keep, self.in_background, self.then = folder, keep, in_background, then
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._buffers: dict[str, Tensor] = {}
        self._exchange = Exchange("saving") if in_background and is_divided else None

    def save(self, checkpoint: Checkpoint, *, is_best: bool, before_cooldown: bool) -> None:
        """Write a checkpoint; in the background, once the former one is written.

        Raises:
            CheckpointError: this one, or in the background the former one, could not be written.
        """
        self.wait()
        if not self.in_background:
            self._write(checkpoint, is_best, before_cooldown)
            return
        copied, ready = self._copied(checkpoint)

        def work() -> None:
            try:
                if ready is not None:
                    ready.synchronize()
                self._write_and_agree(copied, is_best, before_cooldown)
            except BaseException as error:  # raised where the next save or the end waits
                self._error = error

        # Not a daemon: a process that ends finishes the file first.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when what was saved is written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_and_agree(
        self, checkpoint: Checkpoint, is_best: bool, before_cooldown: bool
    ) -> None:
        """Write, and return when all processes have written."""
        if self._exchange is None:
            self._write(checkpoint, is_best, before_cooldown)
            return
        problem = None
        try:
            self._write(checkpoint, is_best, before_cooldown, self._exchange.gather)
        except CheckpointError as error:
            problem = str(error)
        # The first process may still name the slices when the others are done.
        for found in self._exchange.gather(problem):
            if found is not None:
                raise CheckpointError(found)

    def _write(
        self,
        checkpoint: Checkpoint,
        is_best: bool,
        before_cooldown: bool,
        gather: Gather = gather_objects,
    ) -> None:
        checkpoint.save(
            self.folder,
            is_best=is_best,
            before_cooldown=before_cooldown,
            keep=self.keep,
            gather=gather,
        )
        if self.then is not None:
            self.then()

    def _copied(self, checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
        """The checkpoint with copies of its tensors, and an event that is set when copies from a
        GPU are done. What runs on the GPU next waits for them; the host does not."""
        stored: _Stored = {}
        names = ("towers", "followers", "distillers", "ema", "optimizer", "scaler")
        parts = {name: self._copy(getattr(checkpoint, name), name, stored) for name in names}
        ready = None
        if any(device.type == "cuda" for device, *_ in stored):
            ready = torch.cuda.Event()
            ready.record()
        return replace(checkpoint, **parts), ready

    def _copy(self, value: Any, name: str, stored: _Stored) -> Any:
        if isinstance(value, Mapping):
            return {key: self._copy(each, f"{name}.{key}", stored) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(
                self._copy(each, f"{name}[{index}]", stored) for index, each in enumerate(value)
            )
        if not isinstance(value, Tensor):
            return value
        # Tensors that share their memory are one in the file, too.
        own = own_slice(value)
        key = (own.device, own.data_ptr(), own.shape, own.stride(), own.dtype)
        if key not in stored or not own.numel():
            stored[key] = self._buffer(name, own).copy_(own, non_blocking=True)
            if is_divided(value):
                mark_slice(stored[key])
        return stored[key]

    def _buffer(self, name: str, value: Tensor) -> Tensor:
        """Memory for a copy, the same at every save."""
        buffer = self._buffers.get(name)
        fits = buffer is not None and (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
        if buffer is None or not fits or buffer.stride() != value.stride():
            buffer = torch.empty_like(
                value.detach(), device="cpu", pin_memory=value.device.type == "cuda"
            )
            self._buffers[name] = buffer
        return buffer
