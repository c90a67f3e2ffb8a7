from __future__ import annotations

import pytest

from vlkd_cli.engine.launching.launch import first_host
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.errors import UserError


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[4]", "gpu4"),
        ("a[1-2]-ib,b", "a1-ib"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"--gpus 99: there .* Use --cpu-workers 99"):
        choose_placement(99, None)


def test_gpus_and_cpu_workers_exclude_each_other() -> None:
    with pytest.raises(UserError, match="exclude each other"):
        choose_placement(1, 1)


def test_several_nodes_need_a_meeting_point() -> None:
    with pytest.raises(UserError, match="--rendezvous HOST:PORT"):
        choose_placement(None, 2, nodes=2)
    with pytest.raises(UserError, match="--rendezvous host0: write HOST:PORT"):
        choose_placement(None, 2, nodes=2, rendezvous="host0")
    with pytest.raises(UserError, match="counts from 0"):
        choose_placement(None, 2, nodes=2, node_rank=2, rendezvous="a:1")
