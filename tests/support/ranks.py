"""Run a function on several gloo processes and collect what each returns."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing


def _member(
    rank: int,
    world_size: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    answers: Any,
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    from vlkd_cli.distributed.runtime import process_group

    try:
        with process_group(torch.device("cpu"), timeout_seconds=120):
            answers.put((rank, True, function(*arguments)))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))
        raise


def run_on_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 240
) -> list[Any]:
    """`function(*arguments)` on every rank of a fresh gloo group; the return values in rank order.

    The function lives at module level; what it takes and returns is pickled (numpy arrays and
    floats rather than tensors).
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    members = [
        context.Process(target=_member, args=(rank, world_size, port, function, arguments, answers))
        for rank in range(world_size)
    ]
    for member in members:
        member.start()
    try:
        collected: dict[int, Any] = {}
        for _ in members:
            rank, fine, value = answers.get(timeout=timeout_seconds)
            assert fine, f"rank {rank} failed:\n{value}"
            collected[rank] = value
    finally:
        for member in members:
            member.join(timeout=10)
            if member.is_alive():
                member.terminate()
    return [collected[rank] for rank in range(world_size)]
