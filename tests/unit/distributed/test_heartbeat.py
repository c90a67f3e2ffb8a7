"""The heartbeat of a group; whole nodes are cut off in tests/unit/engine/test_nodes.py."""

from __future__ import annotations

import time

import pytest

from tests.support.ranks import run_on_ranks
from vlkd_cli.distributed.heartbeat import (
    Heartbeat,
    Member,
    beating,
    describe_broken,
    describe_lost,
)

MEMBERS = [
    Member(0, 0, "10.0.0.1", "a", 1),
    Member(1, 0, "10.0.0.1", "a", 2),
    Member(2, 1, "10.0.0.2", "b", 1),
    Member(3, 1, "10.0.0.2", "b", 2),
]


def test_a_node_is_named_as_a_whole_and_a_rank_with_its_node() -> None:
    assert describe_lost(MEMBERS[2:], MEMBERS, 30).startswith(
        "node 1 (10.0.0.2) has not answered for 30 s"
    )
    assert describe_lost(MEMBERS[1:], MEMBERS, 30).startswith(
        "rank 1 on node 0 (10.0.0.1) and node 1 (10.0.0.2) have not answered for 30 s"
    )


@pytest.mark.parametrize(
    "text",
    [
        "[pair.cc:552] Read error [10.0.0.2]:57506: Connection reset by peer",
        "NCCL error: remote process exited or there was a network error, remote peer 10.0.0.2<5>",
    ],
)
def test_a_broken_connection_names_the_node_behind_the_address(text: str) -> None:
    line = describe_broken(RuntimeError(text), MEMBERS)
    assert line is not None and line.startswith("lost the connection to node 1 (10.0.0.2)")


@pytest.mark.parametrize(
    "text",
    [
        "Read error [10.0.0.21]:57506: Connection reset by peer",  # not a node's address
        "Read error [10.0.0.1]:57506: Connection reset by peer",  # this node itself
        "size mismatch at 10.0.0.2",
    ],
)
def test_another_error_is_left_as_it_is(text: str) -> None:
    assert describe_broken(RuntimeError(text), MEMBERS) is None


def _silent_rank(silent: int) -> tuple[list[str], float]:
    """What this rank hears when rank `silent` stops beating, and after how long."""
    from vlkd_cli.distributed import runtime

    heard: list[str] = []
    heartbeat = Heartbeat(3.0, heard.append)
    runtime.barrier()
    if runtime.rank() == silent:
        # Its process must live, or it would take the store along; its threads never start.
        time.sleep(9)
        return heard, 0.0
    begin = time.monotonic()
    # The threads send SIGKILL to a silent process of the same host; here that is the test's own.
    heartbeat.members = [member._replace(host=str(member.rank)) for member in heartbeat.members]
    heartbeat.start()
    while not heard and time.monotonic() - begin < 9:
        time.sleep(0.05)
    seconds = time.monotonic() - begin
    time.sleep(max(0.0, 9 - seconds))
    return heard, seconds


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 2])
def test_every_other_rank_hears_which_rank_fell_silent(silent: int) -> None:
    answers = run_on_ranks(_silent_rank, 3, silent)
    for rank, (heard, seconds) in enumerate(answers):
        if rank == silent:
            assert heard == []
        else:
            assert len(heard) == 1 and f"rank {silent} on node 0 (127.0.0.1)" in heard[0]
            assert seconds >= 3


def _leave_at_different_times() -> list[str]:
    from vlkd_cli.distributed import runtime

    heard: list[str] = []
    with beating(2.0, heard.append) as members:
        assert [member.rank for member in members] == [0, 1]
        time.sleep(5 * runtime.rank())
    return heard


@pytest.mark.slow
def test_a_rank_that_is_done_early_is_not_taken_for_lost() -> None:
    assert run_on_ranks(_leave_at_different_times, 2) == [[], []]


def test_one_process_or_no_limit_needs_no_heartbeat() -> None:
    with beating(30.0, pytest.fail) as members:
        assert members == ()
    assert run_on_ranks(_without_limit, 2) == [0, 0]


def _without_limit() -> int:
    import threading

    with beating(None, pytest.fail) as members:
        assert not [each for each in threading.enumerate() if each.name.startswith("heartbeat")]
        return len(members)
