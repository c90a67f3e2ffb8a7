"""Detect within seconds that a process of the group was lost, frozen or cut off, and report which.

A collective waits for every rank, so without help a frozen node or a cut cable leaves all others
waiting until the group's timeout, half an hour. Each rank therefore counts up a key of its own in
the store where the group met. Rank 0 reads all counters; the others read rank 0's and its verdict:
W keys a period, not W squared.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.meeting import own_address
from vlkd_cli.distributed.store import connect

LATE_SECONDS = 10.0
"""A judge that wakes this much too late was frozen itself: what it knows is old."""


class Member(NamedTuple):
    """A rank as the others know it."""

    rank: int
    node: int
    address: str
    host: str
    pid: int

    @property
    def node_name(self) -> str:
        return f"node {self.node} ({self.address})"


def node_number() -> int:
    """The number of this node: of the elastic agent, torchrun or SLURM; 0 where there is one."""
    return int(os.environ.get("GROUP_RANK", os.environ.get("SLURM_NODEID", "0")))


def node_name() -> str:
    """This node as messages name it."""
    return f"node {node_number()} ({own_address(os.environ.get('MASTER_ADDR', '127.0.0.1'))})"


def describe_lost(silent: Sequence[Member], members: Sequence[Member], seconds: float) -> str:
    """One line for the members that stopped answering: whole nodes by name, else single ranks."""
    ranks = {member.rank for member in silent}
    parts: list[str] = []
    for node in sorted({member.node for member in silent}):
        of_node = [member for member in members if member.node == node]
        if all(member.rank in ranks for member in of_node):
            parts.append(of_node[0].node_name)
        else:
            lost = ", ".join(str(member.rank) for member in of_node if member.rank in ranks)
            parts.append(f"rank {lost} on {of_node[0].node_name}")
    have = "has" if len(parts) == 1 else "have"
    return (
        f"{' and '.join(parts)} {have} not answered for {seconds:.0f} s: lost, frozen or cut off."
        " Continue from the last checkpoint with --resume."
    )


def describe_broken(error: BaseException, members: Sequence[Member]) -> str | None:
    """One line for an error of a collective whose other side is gone; None for any other error.

    gloo names the other side as `[10.0.0.2]:57506`, nccl as `remote peer 10.0.0.2<57506>`.
    """
    text = str(error)
    broken = (
        "onnection reset|onnection closed|onnection refused|Read error|Write error|Broken pipe"
        "|remote peer|remote process exited|Socket Timeout|Timed out waiting"
    )
    if not re.search(broken, text):
        return None
    nodes = {
        member.node: member.node_name
        for member in members
        if member.node != node_number()
        and re.search(rf"(?<![\d.]){re.escape(member.address)}(?![\d.])", text)
    }
    if len(nodes) != 1:
        return None
    (name,) = nodes.values()
    return f"lost the connection to {name}. Continue from the last checkpoint with --resume."


class Heartbeat:
    """Beats for this rank and watches the others, in two threads.

    Args:
        limit_seconds: how long a rank may be silent.
        on_loss: called with one line, from a thread, while the main thread waits in a collective;
            ends the process.

    The threads need the interpreter's lock: a C extension that holds it for `limit_seconds` looks
    frozen.
    """

    def __init__(self, limit_seconds: float, on_loss: Callable[[str], None]) -> None:
        self.limit, self.period = limit_seconds, max(1.0, limit_seconds / 15)
        self._on_loss = on_loss
        self._rank, self._world = runtime.rank(), runtime.world_size()
        self._stopped = threading.Event()
        self._store = connect("heartbeat")
        self.members = self._introduce()
        now = time.monotonic()
        self._answered = now
        # What this rank last read of the ranks that it watches, and when that last changed.
        self._watched = range(1, self._world) if self._rank == 0 else range(1)
        self._read: dict[int, bytes] = {}
        self._changed: dict[int, float] = dict.fromkeys(self._watched, now)

    def _introduce(self) -> list[Member]:
        own = Member(
            self._rank,
            node_number(),
            own_address(os.environ["MASTER_ADDR"]),
            socket.gethostname(),
            os.getpid(),
        )
        if self._rank == 0:
            self._store.set("lost", "")
        self._store.set(f"beat/{self._rank}", "0")
        self._store.set(f"name/{self._rank}", json.dumps(own))
        names = self._store.multi_get([f"name/{rank}" for rank in range(self._world)])
        # So that every key that is read later exists.
        self._store.multi_get([f"beat/{rank}" for rank in range(self._world)])
        self._store.wait(["lost"])
        return [Member(*json.loads(name)) for name in names]

    def start(self) -> None:
        for work in (self._talk, self._judge):
            threading.Thread(target=work, daemon=True, name=f"heartbeat{work.__name__}").start()

    def stop(self) -> None:
        self._stopped.set()

    def _talk(self) -> None:
        count = 0
        keys = [f"beat/{rank}" for rank in self._watched] + ["lost"]
        while not self._stopped.wait(self.period):
            count += 1
            try:
                self._store.set(f"beat/{self._rank}", str(count))
                *beats, lost = self._store.multi_get(keys)
            except Exception:
                # Whatever it was, there was no answer: the judge counts.
                continue
            self._answered = now = time.monotonic()
            for rank, beat in zip(self._watched, beats, strict=True):
                if self._read.get(rank) != beat:
                    self._read[rank], self._changed[rank] = beat, now
            if lost:
                self._leave(*json.loads(lost))
            if silent := self._silent(now):
                self._declare(silent)

    def _silent(self, now: float) -> list[int]:
        if all(now - changed <= self.limit for changed in self._changed.values()):
            return []
        # Ranks of one node fall silent together, but are noticed a period apart.
        nearly = self.limit - 2 * self.period
        return [rank for rank, changed in self._changed.items() if now - changed > nearly]

    def _declare(self, silent: list[int]) -> None:
        text = describe_lost([self.members[rank] for rank in silent], self.members, self.limit)
        if self._rank == 0:
            self._store.set("lost", json.dumps([silent, text]))
            # The store may end with this process's agent; the others read the verdict before.
            time.sleep(2 * self.period)
        self._leave(silent, text)

    def _judge(self) -> None:
        """Notice that the store does not answer. Never touches it: behind a cut cable a call
        blocks."""
        woke = time.monotonic()
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if now - woke > LATE_SECONDS:
                self._answered = now
                self._changed.update(dict.fromkeys(self._changed, now))
            woke = now
            if now - self._answered > self.limit:
                first = self.members[0]
                self._leave(
                    [],
                    f"{first.node_name} has not answered {self.members[self._rank].node_name} for"
                    f" {self.limit:.0f} s: it is lost, or this node is cut off. Continue from the"
                    " last checkpoint with --resume.",
                )

    def _leave(self, silent: Sequence[int], text: str) -> None:
        if self._stopped.is_set():
            return
        self._stopped.set()
        own = self.members[self._rank]
        for rank in silent:
            member = self.members[rank]
            # The agent sends a frozen process SIGTERM and waits for it; this one cannot hear it.
            if member.host == own.host and rank != self._rank:
                with contextlib.suppress(OSError):
                    os.kill(member.pid, signal.SIGKILL)
        self._on_loss(text)


@contextlib.contextmanager
def beating(
    limit_seconds: float | None, on_loss: Callable[[str], None]
) -> Iterator[Sequence[Member]]:
    """Watch the group that is up while the block runs; gives its members.

    All ranks leave the block together, so that one that is done early is not taken for lost.
    """
    if limit_seconds is None or runtime.world_size() == 1:
        yield ()
        return
    heartbeat = Heartbeat(limit_seconds, on_loss)
    heartbeat.start()
    try:
        yield heartbeat.members
        runtime.barrier()
    finally:
        heartbeat.stop()
