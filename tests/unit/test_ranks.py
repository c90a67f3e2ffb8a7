from __future__ import annotations

import pytest

from vlkd_cli.ranks import is_first, joins_running_job, num_processes

NAMES = (
    "RANK",
    "WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_NTASKS",
)


@pytest.mark.parametrize(
    ("environment", "joins", "first", "processes"),
    [
        ({}, False, True, 1),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True, True, 2),
        ({"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}, True, False, 2),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, True, True, 4),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}, True, False, 4),
        # In an allocation, outside of a step.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, False, True, 1),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, False, True, 1),
    ],
)
def test_the_environment_determines_job_and_rank(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    joins: bool,
    first: bool,
    processes: int,
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (joins_running_job(), is_first(), num_processes()) == (joins, first, processes)
