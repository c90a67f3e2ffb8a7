"""Rank, world and device of this process; joining and leaving the process group.

Every function works in a plain single process: there the rank is 0, the world has one member, and
nothing is initialized.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from vlkd_cli.distributed.meeting import join_job


def is_distributed() -> bool:
    """Whether a process group is up (false in a plain single process)."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Rank within this machine, as torchrun or the elastic agent sets it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the one process that prints and writes."""
    return rank() == 0


def barrier() -> None:
    if is_distributed():
        dist.barrier()


def pick_device(prefer: str = "auto") -> torch.device:
    """The device of this process.

    Args:
        prefer: "cpu", "cuda" or "auto" (CUDA where there is one).
    """
    if prefer == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@contextmanager
def process_group(device: torch.device, timeout_seconds: float = 1800) -> Iterator[None]:
    """Join the group that the environment describes (WORLD_SIZE, RANK, MASTER_ADDR, ...) and leave
    it at the end.

    Without WORLD_SIZE in the environment this does nothing: the process stays alone.

    Raises:
        UserError: the processes do not meet; why.
    """
    if "WORLD_SIZE" not in os.environ or is_distributed():
        yield
        return
    # CPU tensors (flags, results) travel through gloo also where gradients go through nccl.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    store, own_rank, size = join_job(timeout_seconds)
    # The agent's store outlives a failed group; without names of its own, a restarted one would
    # read the addresses of the dead.
    store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=timeout)
    # Not after an error: leaving in order waits for the others, which may be gone, and the process
    # is about to end.
    yield
    dist.destroy_process_group()
