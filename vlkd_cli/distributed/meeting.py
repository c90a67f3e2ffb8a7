"""Where the nodes of a job, or its processes, find each other; one line for whatever prevents it.

torch looks for a host that does not exist, or a port at which nothing listens, until its timeout
and then raises a traceback, and a rank that was given twice leaves everyone waiting.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from vlkd_cli.errors import UserError

MEETING_SECONDS = 600.0
"""How long nodes and processes wait for each other."""
HANDSHAKE_SECONDS = 10.0
"""How long a store that was reached may take to answer."""
BEAT_SECONDS = 0.5
_NOTICE_SECONDS = 10.0


def parse_endpoint(text: str) -> tuple[str, int]:
    """Host and port of `--rendezvous`.

    Raises:
        UserError: it is not HOST:PORT.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 1 << 16:
        raise UserError(f"--rendezvous {text}: write HOST:PORT of node 0, e.g. host0:29500.")
    return host, int(port)


def own_address(first: str) -> str:
    """The address under which this node reaches the node named `first`; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((first, 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@contextlib.contextmanager
def nodes_met(
    endpoint: str,
    node: int,
    nodes: int,
    *,
    seconds: float = MEETING_SECONDS,
    notice: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Run the block when all nodes are at the endpoint, which node 0 serves for as long.

    Args:
        seconds: how long to wait for the others.
        notice: is given a line about who is missing if that takes long.

    Raises:
        UserError: the endpoint is wrong or in use, nodes do not come, or another node has this
            one's rank or expects another number of nodes.
    """
    host, port = parse_endpoint(endpoint)
    _require_known(host, f"--rendezvous {endpoint}")
    store = (
        _serve(host, port, endpoint)
        if node == 0
        else _reach(host, port, f"node 0 at {endpoint} (--rendezvous)", seconds)
    )
    arrivals = PrefixStore("nodes", store)
    left = threading.Event()
    try:
        try:
            _require_equal(arrivals, "--nodes", nodes)
            _arrive(arrivals, node, nodes, host)
            threading.Thread(target=_beat, args=(host, port, node, left), daemon=True).start()
            _wait_for_all(arrivals, nodes, endpoint, seconds, notice)
        except RuntimeError as error:
            raise UserError(
                f"lost the connection to node 0 at {endpoint}. Start all nodes again."
            ) from error
        yield
    finally:
        left.set()


def join_job(timeout_seconds: float) -> tuple[Store, int, int]:
    """The store of the job that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT), this process's rank, and their number.

    Raises:
        UserError: a variable is missing or wrong, or the processes do not meet.
    """
    rank, size, port = (_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host = os.environ.get("MASTER_ADDR", "")
    if rank >= size:
        raise UserError(f"RANK {rank} is out of range for WORLD_SIZE {size}; it counts from 0.")
    _require_known(host, "MASTER_ADDR")
    seconds = min(timeout_seconds, MEETING_SECONDS)
    if rank:
        _reach(host, port, f"rank 0 at MASTER_ADDR:MASTER_PORT {host}:{port}", seconds)
    try:
        store, rank, size = next(
            iter(rendezvous("env://", timeout=timedelta(seconds=timeout_seconds)))
        )
    except RuntimeError as error:
        raise UserError(_unmet(str(error), host, port)) from error
    # Torch's agents start lost processes again under their old ranks.
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _require_equal(store, "WORLD_SIZE", size)
        if store.add(f"rank/{rank}", 1) > 1:
            raise UserError(
                f"two processes at {host}:{port} have RANK {rank}. Give each a rank of its own,"
                f" from 0 to {size - 1}."
            )
    return store, rank, size


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not (value.isascii() and value.isdecimal()):
        there = f"is '{value}', not a number" if value else "is not set"
        raise UserError(
            f"the environment variable {name} {there}. Start processes with torchrun, srun or vlkd"
            " train --gpus, which set it."
        )
    return int(value)


def _require_known(host: str, name: str) -> None:
    try:
        socket.getaddrinfo(host or "no host", None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{name}: this machine cannot find the host '{host}' ({reason}). Write the name or"
            " address of the first node as the others reach it."
        ) from None


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _serve(host: str, port: int, endpoint: str) -> Store:
    if _answers(host, port):
        raise UserError(
            f"--rendezvous {endpoint} is in use: a node with --node-rank 0 is there already, or"
            " another program. Give each node a rank of its own, or choose another port on every"
            " node."
        )
    try:
        return _store(host, port, is_master=True)
    except RuntimeError as error:
        raise UserError(
            f"node 0 cannot be reached at --rendezvous {endpoint}, where it should listen"
            f" ({_reason(str(error))}). Start node 0 on this host, or choose another port on every"
            " node."
        ) from error


def _reach(host: str, port: int, what: str, seconds: float) -> Store:
    end = time.monotonic() + seconds
    while not _answers(host, port):
        if time.monotonic() > end:
            raise UserError(
                f"{what} has not answered for {seconds:.0f} s. Check the host and the port, that it"
                " was started, and that no firewall is between."
            )
        time.sleep(0.1)
    try:
        return _store(host, port)
    except RuntimeError as error:
        raise UserError(
            f"{what}: another program answers there ({_reason(str(error))}). Check the port."
        ) from error


def _store(host: str, port: int, *, is_master: bool = False) -> Store:
    """A store at the endpoint.

    Raises:
        RuntimeError: there is none.
    """
    found: list[Store | RuntimeError] = []

    def connect() -> None:
        limit = timedelta(seconds=HANDSHAKE_SECONDS)
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                host, port, None, is_master, limit, wait_for_workers=False, multi_tenant=is_master
            )
        except RuntimeError as error:
            found.append(error)
        else:
            found.append(store)

    # Torch waits without a limit for the first answer of a program that sends nothing.
    attempt = threading.Thread(target=connect, daemon=True)
    with _muted():
        attempt.start()
        attempt.join(2 * HANDSHAKE_SECONDS)
    if not found:
        raise RuntimeError(f"it has not answered for {2 * HANDSHAKE_SECONDS:.0f} s")
    if isinstance(found[0], RuntimeError):
        raise found[0]
    return found[0]


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Without the traces that torch's libraries print before they raise."""
    sys.stderr.flush()
    stored = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stored, 2)
        os.close(stored)


def _require_equal(store: Store, name: str, value: int) -> None:
    first = store.compare_set(f"all/{name}", "", str(value)).decode()
    if first != str(value):
        raise UserError(
            f"{name} is {value} here, and {first} where the first one was started. Start all with"
            " the same number."
        )


def _arrive(store: Store, node: int, nodes: int, host: str) -> None:
    """Register this node. A node that was killed may come back; one that is alive has its rank to
    itself."""
    own = f"{socket.gethostname()} ({own_address(host)})"
    if store.add(f"arrived/{node}", 1) == 1:
        store.set(f"name/{node}", own)
        return
    before = store.add(f"beat/{node}", 0)
    time.sleep(4 * BEAT_SECONDS)
    if store.add(f"beat/{node}", 0) != before:
        raise UserError(
            f"--node-rank {node} is that of {store.get(f'name/{node}').decode()}, which is running."
            f" Give each node a rank of its own, from 0 to {nodes - 1}."
        )
    store.set(f"name/{node}", own)


def _beat(host: str, port: int, node: int, left: threading.Event) -> None:
    """Show that this node is alive, on a connection of its own."""
    with contextlib.suppress(RuntimeError):  # node 0 has ended
        store = PrefixStore("nodes", _store(host, port))
        while not left.wait(BEAT_SECONDS):
            store.add(f"beat/{node}", 1)


def _wait_for_all(
    store: Store,
    nodes: int,
    endpoint: str,
    seconds: float,
    notice: Callable[[str], None] | None,
) -> None:
    begin = time.monotonic()
    while missing := [node for node in range(nodes) if not store.check([f"arrived/{node}"])]:
        which = f"node{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {nodes}"
        waited = time.monotonic() - begin
        if waited > seconds:
            raise UserError(
                f"{which} did not come to {endpoint} within {seconds:.0f} s. Start the same command"
                " there, with --node-rank."
            )
        if notice is not None and waited > _NOTICE_SECONDS:
            notice(f"Waiting at {endpoint} for {which}.")
            notice = None
        time.sleep(BEAT_SECONDS)


def _unmet(text: str, host: str, port: int) -> str:
    if "EADDRINUSE" in text or "in use" in text:
        return (
            f"MASTER_PORT {port} is in use on this machine: by another program, or by another"
            " process with RANK 0. Set MASTER_PORT to another number for all processes."
        )
    return (
        f"the processes of this job did not meet at MASTER_ADDR:MASTER_PORT {host}:{port}"
        f" ({_reason(text)}). Check that all were started, with the same address."
    )


def _reason(text: str) -> str:
    return text.strip().partition("\n")[0].partition(". ")[0].rstrip(".") or "no reason given"
