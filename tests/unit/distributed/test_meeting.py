from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from vlkd_cli.distributed import meeting
from vlkd_cli.distributed.meeting import join_job, nodes_met, parse_endpoint
from vlkd_cli.distributed.runtime import process_group
from vlkd_cli.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(meeting, "HANDSHAKE_SECONDS", 0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port at which another program listens that never answers."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield int(other.getsockname()[1])


def meets(endpoint: str, node: int, nodes: int, **keys: Any) -> str:
    """The line for a node that cannot join the others; empty where they met."""
    try:
        with nodes_met(endpoint, node, nodes, **{"seconds": 20.0, **keys}):
            return ""
    except UserError as error:
        return str(error)


class Node(threading.Thread):
    """A node that meets the others and stays until it is asked to leave."""

    def __init__(self, endpoint: str, node: int, nodes: int) -> None:
        super().__init__(daemon=True)
        self.arguments, self.line = (endpoint, node, nodes), ""
        self.is_there, self.leaves = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        try:
            with nodes_met(*self.arguments, seconds=20.0):
                self.is_there.set()
                self.leaves.wait(20)
        except UserError as error:
            self.line = str(error)


@pytest.mark.parametrize("text", ["host0", "host0:", ":29500", "host0:port", "host0:0", "h:65536"])
def test_an_endpoint_is_a_host_and_a_port(text: str) -> None:
    assert parse_endpoint("host0:29500") == ("host0", 29500)
    assert parse_endpoint("[fd00::1]:29500") == ("fd00::1", 29500)
    with pytest.raises(UserError, match=f"--rendezvous {text}: write HOST:PORT of node 0"):
        parse_endpoint(text)


def test_a_second_node_of_a_rank_is_refused_and_one_that_comes_back_is_not() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first, second = Node(endpoint, 0, 2), Node(endpoint, 1, 2)
    assert first.is_there.wait(20) and second.is_there.wait(20), (first.line, second.line)
    own = f"{socket.gethostname()} (127.0.0.1)"
    assert meets(endpoint, 1, 2) == (
        f"--node-rank 1 is that of {own}, which is running. Give each node a rank of its own, from"
        " 0 to 1."
    )
    assert meets(endpoint, 0, 2).startswith(
        f"--rendezvous {endpoint} is in use: a node with --node-rank 0 is there already"
    )
    assert meets(endpoint, 1, 3) == (
        "--nodes is 3 here, and 2 where the first one was started. Start all with the same number."
    )
    second.leaves.set()
    second.join()
    assert meets(endpoint, 1, 2) == ""
    first.leaves.set()
    first.join()


def test_nodes_that_do_not_come_are_named() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    assert meets(endpoint, 0, 3, seconds=0.1) == (
        f"nodes 1, 2 of 3 did not come to {endpoint} within 0 s. Start the same command there, with"
        " --node-rank."
    )
    assert meets(endpoint, 1, 2, seconds=0.1).startswith(
        f"node 0 at {endpoint} (--rendezvous) has not answered for 0 s. Check the host and the port"
    )


def test_an_endpoint_that_is_not_the_job_is_one_line() -> None:
    with listening() as port:
        endpoint = f"127.0.0.1:{port}"
        assert meets(endpoint, 0, 2).startswith(f"--rendezvous {endpoint} is in use")
        assert "another program answers there" in meets(endpoint, 1, 2)
    assert meets("no..host:29500", 1, 2).startswith(
        "--rendezvous no..host:29500: this machine cannot find the host 'no..host'"
    )


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"RANK": "2"}, "RANK 2 is out of range for WORLD_SIZE 2; it counts from 0."),
        ({"MASTER_PORT": "http"}, "the environment variable MASTER_PORT is 'http', not a number."),
        ({"MASTER_PORT": ""}, "the environment variable MASTER_PORT is not set."),
        ({"MASTER_ADDR": "no..host"}, "MASTER_ADDR: this machine cannot find the host 'no..host'"),
        (
            {"RANK": "1"},
            "rank 0 at MASTER_ADDR:MASTER_PORT 127.0.0.1:{port} has not answered for 0",
        ),
        ({"WORLD_SIZE": "1", "LISTENS": "1"}, "MASTER_PORT {port} is in use on this machine"),
    ],
)
def test_a_wrong_environment_is_one_line(
    changed: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening() if "LISTENS" in changed else contextlib.nullcontext(free_port()) as port:
        job = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        for name, value in {**job, **changed}.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError) as failed,
            process_group(torch.device("cpu"), timeout_seconds=0.3),
        ):
            pass
    assert line.format(port=port) in str(failed.value)


def test_two_processes_of_a_rank_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port, lines = free_port(), []
    job = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    first = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)  # type: ignore[attr-defined]

    def join() -> None:
        try:
            join_job(20.0)
        except UserError as error:
            lines.append(str(error))

    members = [threading.Thread(target=join, daemon=True) for _ in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    del first
    assert lines == [
        f"two processes at 127.0.0.1:{port} have RANK 1. Give each a rank of its own, from 0 to 1."
    ]
