"""Short messages between the processes of a group without a collective, so that threads can send
them while the main threads train."""

from __future__ import annotations

import json
import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from vlkd_cli.distributed import runtime


def connect(name: str, timeout_seconds: float = 60) -> PrefixStore:
    """The store where the group met, on a connection of its own: calls of the process group hold a
    lock while they wait.

    Args:
        name: of what uses it; keys are its own.
        timeout_seconds: after which a call raises an error.
    """
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_seconds),
    )
    # A group that was started again must not read the values of the dead.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"{name}_{attempt}", store)


class Exchange:
    """Gathers texts of all ranks; every rank calls it equally often, from one thread at a time.

    Args:
        name: of what uses it, the same on all ranks.
    """

    def __init__(self, name: str, timeout_seconds: float = 1800) -> None:
        self._store, self._count = connect(name, timeout_seconds), 0

    def gather(self, value: str | None) -> list[str | None]:
        """The values of all ranks in rank order, on every rank; waits for the last one."""
        self._count += 1
        self._store.set(f"{self._count}/{runtime.rank()}", json.dumps(value))
        keys = [f"{self._count}/{rank}" for rank in range(runtime.world_size())]
        found = [json.loads(each) for each in self._store.multi_get(keys)]
        if self._count > 1:
            # All ranks have begun this call, so none reads the former one any more.
            self._store.delete_key(f"{self._count - 1}/{runtime.rank()}")
        return found
