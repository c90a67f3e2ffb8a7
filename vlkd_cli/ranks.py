"""Which process of a job this is, by the environment variables of torchrun, SLURM or vlkd's own
launcher; without torch, so that it can be called before a process group exists."""

from __future__ import annotations

import os


def joins_running_job() -> bool:
    """Whether this process was started by torchrun, or by srun with several tasks."""
    return (
        "TORCHELASTIC_RUN_ID" in os.environ
        or ("RANK" in os.environ and "WORLD_SIZE" in os.environ)
        or slurm_tasks() > 1
    )


def slurm_tasks() -> int:
    """Tasks of the SLURM step that this process is one of; 1 outside of a step."""
    # Inside an allocation but outside srun there is no SLURM_PROCID of a task step, and nothing to
    # join.
    if not {"SLURM_PROCID", "SLURM_STEP_ID"} <= set(os.environ):
        return 1
    return int(os.environ.get("SLURM_NTASKS", "1"))


def num_processes() -> int:
    """Processes of the running job; 1 for a process on its own."""
    return int(os.environ.get("WORLD_SIZE", "0")) or slurm_tasks()


def is_first() -> bool:
    """Whether this is the one process that prints, and that writes the run folder: the first rank,
    or a process on its own."""
    rank = os.environ.get("RANK")
    if not rank and slurm_tasks() > 1:
        rank = os.environ["SLURM_PROCID"]
    return rank in (None, "", "0")


def local_rank_and_size() -> tuple[int, int]:
    """This process among those of the job on the same machine: its position, and their number."""
    count = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return int(os.environ.get("LOCAL_RANK") or 0) % count, count
