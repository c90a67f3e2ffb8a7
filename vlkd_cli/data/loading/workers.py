"""Processes that prepare batches ahead, kept between epochs; errors of the user's data cross over
as what they are."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vlkd_cli.data.batch import Batch, Skipped
from vlkd_cli.errors import DataError, UserError

_SMALL_BYTES = 1 << 16
_GRACE_SECONDS = 10


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
        self._loader: DataLoader[Any] | None = None
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
                    "another iteration over the same loader was started; only the newest goes on"
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
        if self._loader is None:
            self._loader = DataLoader(
                _Parcels(self._assembler),
                batch_size=None,
                sampler=self._requests,
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                pin_memory=self._pin,
                collate_fn=_as_is,
                worker_init_fn=_leave_signals_to_the_trainer,
                persistent_workers=True,
            )
        self._requests.requests = [
            request._replace(first=requests[0].number) for request in requests
        ]
        try:
            for parcel in self._loader:
                if isinstance(parcel, _Failure):
                    raise parcel.kind(parcel.text)
                yield parcel if isinstance(parcel, Batch) else parcel.opened()
        except RuntimeError as error:
            killed = re.search(r"DataLoader worker \(pid[^)]*\)[^.]*", str(error))
            if killed is None:
                raise
            self._loader = None
            raise DataError(
                f"a loader process died ({killed[0]}), most often for want of memory. Lower"
                " data.workers, data.prefetch or the batch size."
            ) from error
        except UserError:
            self._loader = None
            raise


def _leave_signals_to_the_trainer(worker: int) -> None:
    # A terminal, `timeout` and SLURM signal the whole group. The trainer still needs batches to
    # reach its next safe place, and lets its workers go when it is done; a worker that nobody lets
    # go ends a little later.
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
    """A batch on its way between processes. Small tensors travel as arrays: each tensor would cost
    a file descriptor and a shared block."""

    def __init__(self, batch: Batch) -> None:
        self.inputs = {
            key: (
                _packed(value)
                if isinstance(value, Tensor)
                else {name: _packed(tensor) for name, tensor in value.items()}
            )
            for key, value in batch.inputs.items()
        }
        self.indices, self.labels, self.skipped = (
            batch.indices.numpy(),
            batch.labels.numpy(),
            list(batch.skipped),
        )

    def opened(self) -> Batch:
        inputs = {
            key: (
                {name: torch.as_tensor(array) for name, array in value.items()}
                if isinstance(value, dict)
                else torch.as_tensor(value)
            )
            for key, value in self.inputs.items()
        }
        skipped = [Skipped(*skipped) for skipped in self.skipped]
        return Batch(inputs, torch.from_numpy(self.indices), torch.from_numpy(self.labels), skipped)

    def pin_memory(self) -> Batch:
        return self.opened().pin_memory()


def _packed(tensor: Tensor) -> Tensor | np.ndarray:
    return (
        tensor.numpy()
        if tensor.numel() * tensor.element_size() <= _SMALL_BYTES and tensor.dtype != torch.bfloat16
        else tensor
    )


class _Parcels(Dataset[Any]):
    def __init__(self, assembler: Assembles) -> None:
        self.assembler = assembler

    def __getitem__(self, request: Request) -> _Parcel | _Failure:
        try:
            return _Parcel(self.assembler[request])
        except UserError as error:
            return _Failure(
                DataError if type(error).__init__ is not Exception.__init__ else type(error),
                str(error),
            )


def _as_is(parcel: Any) -> Any:
    return parcel
