"""Processes that prepare batches ahead and live on between epochs; errors of the user's data cross
over as what they are."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlkd_cli import console
from vlkd_cli.data.batch import Batch
from vlkd_cli.errors import DataError, UserError

_SMALL_BYTES = 1 << 16
_GRACE_SECONDS = 10
_SHARED_MEMORY = "/dev/shm"


class Request(NamedTuple):
    """Which batch of which epoch; `first` is the first batch of the iteration, whatever the
    worker."""

    epoch: int
    number: int
    first: int = 0


class Assembles(Protocol):
    """What makes a batch of a request; picklable."""

    def __getitem__(self, request: Request) -> Batch: ...


class WorkerPool:
    """Makes the requested batches in order, in this process or in worker processes.

    Args:
        assembler: makes one batch.
        workers: processes; 0: none.
        prefetch: batches ahead per process.
        pin_memory: deliver page-locked memory.
    """

    def __init__(
        self, assembler: Assembles, *, workers: int, prefetch: int, pin_memory: bool
    ) -> None:
        self._assembler, self._workers, self._prefetch, self._pin = (
            assembler,
            workers,
            prefetch,
            pin_memory,
        )
        self._requests = _Requests()
        self._loader: DataLoader[_Parcel | _Failure] | None = None
        self._processes: list[BaseProcess] = []
        self._turn = 0

    def run(self, requests: Sequence[Request]) -> Iterator[Batch]:
        """The batches of the requests, in their order."""
        self._turn += 1
        turn = self._turn
        for batch in (
            self._in_process(requests) if self._workers == 0 else self._in_workers(requests)
        ):
            if turn != self._turn:
                raise RuntimeError(
                    "another iteration over the same loader was started; only the newest continues"
                )
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        self._turn += 1
        self._loader = None

    def _in_process(self, requests: Sequence[Request]) -> Iterator[Batch]:
        for request in requests:
            batch = self._assembler[request._replace(first=requests[0].number)]
            yield batch.pin_memory() if self._pin else batch

    def _in_workers(self, requests: Sequence[Request]) -> Iterator[Batch]:
        self._requests.requests = [
            request._replace(first=requests[0].number) for request in requests
        ]
        try:
            for parcel in self._parcels():
                if isinstance(parcel, _Failure):
                    raise parcel.kind(parcel.text)
                if isinstance(parcel, _Parcel):
                    _tell_of_copies(parcel)
                yield parcel if isinstance(parcel, Batch) else parcel.opened()
        except (RuntimeError, OSError, EOFError) as error:
            # "Caught ..." is a bug in a worker, with its traceback.
            dead = [each for each in self._processes if not each.is_alive()]
            if str(error).startswith("Caught ") or not (dead or _is_of_a_worker(error)):
                raise
            self._loader = None
            raise DataError(_death(dead)) from error
        except UserError:
            self._loader = None
            raise

    def _parcels(self) -> Iterator[Batch | _Parcel | _Failure]:
        """An iteration over the requests; the first one starts the processes."""
        if self._loader is not None:
            return iter(self._loader)
        self._loader = DataLoader(
            _Parcels(self._assembler, self._workers),
            batch_size=None,
            sampler=self._requests,
            num_workers=self._workers,
            prefetch_factor=self._prefetch,
            pin_memory=self._pin,
            collate_fn=_as_is,
            worker_init_fn=_leave_signals_to_the_trainer,
            persistent_workers=True,
        )
        before = multiprocessing.active_children()
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            parcels = iter(self._loader)
        except OSError as error:
            self._loader = None
            raise DataError(
                f"loader workers cannot be started ({error.strerror}). Set data.workers: 0, or"
                " raise the limit."
            ) from error
        # torch would raise wherever this process is when a worker dies, e.g. in the middle of a
        # forward pass. It also looks for dead workers when the next batch is due.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        self._processes = [each for each in multiprocessing.active_children() if each not in before]
        return parcels


def _is_of_a_worker(error: Exception) -> bool:
    return re.search(r"DataLoader worker \(pid", str(error)) is not None


def _death(dead: Sequence[BaseProcess]) -> str:
    """A line about a worker that died by itself, by its exit code."""
    code = dead[0].exitcode if dead else None
    if code is not None and code < 0:
        how = f"was killed ({signal.strsignal(-code) or -code})"
    else:
        how = "ended unexpectedly" + (f" with exit code {code}" if code else "")
    if code == -signal.SIGBUS:
        return (
            f"a loader worker {how}: {_SHARED_MEMORY} is full. Give it more room (docker run"
            " --shm-size=8g), or set data.workers: 0."
        )
    return (
        f"a loader worker {how}, most often because memory ran out. Lower data.workers,"
        " data.prefetch or train.batch_size."
    )


def _leave_signals_to_the_trainer(worker: int) -> None:
    # A terminal, `timeout` and SLURM signal the whole group. The trainer still needs batches to
    # reach its next safe point, and releases its workers when it is done; a worker that nobody
    # releases ends a little later.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE_SECONDS))


class _Requests(Sampler[Request]):
    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class _Failure(NamedTuple):
    """A UserError of a worker: torch would rebuild the exception around a traceback, and one line
    would become thirty."""

    kind: type[UserError]
    text: str


class _Parcel:
    """A batch on its way between processes. Small tensors travel as arrays, since each tensor costs
    a file descriptor and a shared block, and so do all where the shared memory has no room: a
    process that writes beyond its end is killed, and the run would wait for it for ever.

    Args:
        senders: processes that may send a batch at this moment.
    """

    def __init__(self, batch: Batch, senders: int) -> None:
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        room = _shared_memory_room()
        self.is_copied = 2 * senders * _num_bytes(values) > room
        self.room = room
        largest = sys.maxsize if self.is_copied else _SMALL_BYTES
        self.values = _packed(values, largest)

    def opened(self) -> Batch:
        return Batch(**_unpacked(self.values))

    def pin_memory(self) -> Batch:
        _tell_of_copies(self)
        return self.opened().pin_memory()


def _tell_of_copies(parcel: _Parcel) -> None:
    if parcel.is_copied:
        console.warn_once(
            f"batches are copied between processes, since {_SHARED_MEMORY} has only"
            f" {int(parcel.room) >> 20} MiB of room. Give it more for speed (docker run"
            " --shm-size=8g)."
        )


def _shared_memory_room() -> float:
    """Free bytes for tensors that processes share."""
    if sys.platform != "linux":
        return float("inf")
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize


def _num_bytes(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _packed(value: object, largest: int) -> object:
    if isinstance(value, dict):
        return {key: _packed(inner, largest) for key, inner in value.items()}
    if isinstance(value, Tensor) and _num_bytes(value) <= largest:
        return value.numpy() if value.dtype != torch.bfloat16 else value
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unpacked(inner) for key, inner in value.items()}
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


class _Parcels(Dataset["_Parcel | _Failure"]):
    def __init__(self, assembler: Assembles, workers: int) -> None:
        self.assembler = assembler
        self.senders = workers * int(os.environ.get("LOCAL_WORLD_SIZE") or 1)

    def __getitem__(self, request: Request) -> _Parcel | _Failure:
        try:
            return _Parcel(self.assembler[request], self.senders)
        except UserError as error:
            return _Failure(
                DataError if type(error).__init__ is not Exception.__init__ else type(error),
                str(error),
            )


Same = TypeVar("Same")


def _as_is(parcel: Same) -> Same:
    return parcel
