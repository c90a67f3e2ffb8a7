"""Start workers: in this process, through torch's elastic agent, or as a member of a torchrun or
SLURM job that is already there."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkd_cli import console
from vlkd_cli.errors import UserError, ran_out_of_memory
from vlkd_cli.ranks import joins_running_job

ANSWER_SECONDS = 3.0
"""How long a worker that was stopped offers its answer; agents look ten times a second."""


@dataclass(frozen=True)
class Placement:
    """Where workers run.

    Args:
        workers: processes on this machine.
        device: "cuda" or "cpu".
        nodes, node_rank, rendezvous: machines of the job, this one's number, and HOST:PORT of the
            first.
        max_restarts: how often a failed group is started again from its last checkpoint.
    """

    workers: int = 1
    device: str = "auto"
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    max_restarts: int = 0


class WorkerFailed(UserError):
    """A worker ended the run; the text names rank, step and cause."""


def quieten_libraries() -> None:
    """Leave out what libraries say of their own affairs; whoever wants to read it says --verbose.
    Workers inherit the settings."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    # DDP reports on standard error that every parameter was used.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.simplefilter("ignore")


def run_workers(target: Callable[[Any], int], job: Any, placement: Placement, logs: Path) -> int:
    """Run `target(job)` on every worker and return the first one's answer.

    Under torchrun or SLURM this process is one worker of a job that exists. Otherwise one worker
    runs right here, and several are spawned by the elastic agent, their output kept in `logs` and
    the first one's shown.

    Raises:
        UserError: what a worker raised for the user.
        WorkerFailed: a worker died; names rank, step and cause.
    """
    if joins_running_job():
        return _join(target, job)
    if placement.workers == 1 and placement.nodes == 1 and placement.max_restarts == 0:
        try:
            return target(job)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            said = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"not enough memory: {said}. Lower train.batch_size or the sizes of the towers."
            ) from error
    return _spawn(target, job, placement, logs)


def _join(target: Callable[[Any], int], job: Any) -> int:
    if "RANK" not in os.environ:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
        os.environ.setdefault("LOCAL_WORLD_SIZE", os.environ.get("SLURM_NTASKS_PER_NODE", "1"))
        os.environ.setdefault(
            "MASTER_ADDR",
            first_host(
                os.environ.get("SLURM_STEP_NODELIST", os.environ.get("SLURM_NODELIST", "127.0.0.1"))
            ),
        )
        # Tasks of one job agree on a port without talking: it follows from the job's number.
        os.environ.setdefault(
            "MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000)
        )
    return _in_group(target, job)


def first_host(nodelist: str) -> str:
    """The first machine of a SLURM node list: "gpu[03-05,9],login" -> "gpu03"."""
    head = nodelist.split(",")[0] if "[" not in nodelist.split(",")[0] else nodelist
    if "[" not in head:
        return head
    prefix, rest = head.split("[", 1)
    inside, _, suffix = rest.partition("]")
    return prefix + inside.split(",")[0].split("-")[0] + suffix.split(",")[0]


def _in_group(target: Callable[[Any], int], job: Any) -> int:
    from vlkd_cli.distributed.runtime import pick_device, process_group

    with process_group(pick_device(getattr(job, "device", "auto"))):
        return target(job)


def _spawn(target: Callable[[Any], int], job: Any, placement: Placement, logs: Path) -> int:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    console.take_back()
    logs.mkdir(parents=True, exist_ok=True)
    _log_agent(logs / "agent.log")
    for old in logs.glob("failure_rank_*.json"):
        old.unlink()
    # One thread each unless the user says otherwise: workers that all use every core are slower
    # than one.
    os.environ.setdefault(
        "OMP_NUM_THREADS",
        str(max(1, (os.cpu_count() or 1) // placement.workers) if placement.device == "cpu" else 1),
    )
    config = LaunchConfig(
        min_nodes=placement.nodes,
        max_nodes=placement.nodes,
        nproc_per_node=placement.workers,
        run_id="vlkd",
        rdzv_backend="c10d" if placement.nodes == 1 else "static",
        rdzv_endpoint=placement.rendezvous or "127.0.0.1:0",
        rdzv_configs={"rank": placement.node_rank, "timeout": 600},
        max_restarts=placement.max_restarts,
        monitor_interval=0.1,
        start_method="spawn",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
        local_addr="127.0.0.1" if placement.nodes == 1 else None,
    )
    try:
        answers = elastic_launch(config, _member)(target, job, str(logs))
    except ChildFailedError as error:
        raise _explain(error, logs) from None
    except SignalException as error:
        return int(error.sigval)
    return int(answers.get(0, next(iter(answers.values()), 0)) or 0)


def _log_agent(path: Path) -> None:
    """What torch's agent says goes to a file: its tracebacks are of its own waiting, the worker's
    cause is told in one line."""
    for name in (
        "torch.distributed.elastic",
        "torch.distributed.launcher",
        "torch.multiprocessing",
    ):
        logger = logging.getLogger(name)
        logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
        logger.propagate = False


def _member(target: Callable[[Any], int], job: Any, logs: str) -> int:
    """What a spawned worker runs: its output goes to `logs/rank_N.log`, the first one's to the
    terminal too."""
    rank = int(os.environ["RANK"])
    # Open as long as the process lives.
    log = open(Path(logs) / f"rank_{rank}.log", "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    if rank == 0:
        sys.stderr = _Tee(sys.stderr, log)
    else:
        # Native libraries write past sys.stdout, so the descriptors themselves are turned.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        answer = _in_group(target, job)
        if answer:
            # Stopped by a signal. Torch keeps a worker alive until its answer was read, and an
            # agent that got the signal too reads none, but waits half a minute and kills.
            leave = threading.Timer(ANSWER_SECONDS, os._exit, (0,))
            leave.daemon = True
            leave.start()
        return answer
    except BaseException as error:
        text = console.without_secrets(traceback.format_exc())
        log.write(text)
        record = {
            "rank": rank,
            "time": time.time(),
            "where": next(iter(getattr(error, "__notes__", [])), None),
            "cause": console.without_secrets(str(error) or type(error).__name__).strip(),
            "kind": type(error).__name__,
            "is_user_error": isinstance(error, UserError),
        }
        (Path(logs) / f"failure_rank_{rank}.json").write_text(json.dumps(record), encoding="utf-8")
        # Leave without the interpreter's own report (it is in the log) and without destructors that
        # wait for the other ranks.
        sys.stderr.flush()
        os._exit(1)


def _explain(error: Any, logs: Path) -> UserError:
    """One line from the failures that the workers wrote, the earliest being the cause of the
    others."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in logs.glob("failure_rank_*.json")
    ]
    killed = [(rank, failure) for rank, failure in error.failures.items() if failure.exitcode < 0]
    own = [(rank, failure) for rank, failure in killed if failure.exitcode not in (-15, -2)]
    if own and not any(record["is_user_error"] for record in records):
        rank, failure = own[0]
        name = (
            failure.signal_name()
            if callable(getattr(failure, "signal_name", None))
            else f"signal {-failure.exitcode}"
        )
        hint = " (often: out of memory)" if failure.exitcode == -9 else ""
        return WorkerFailed(
            f"worker {rank} was killed by {name}{hint}. Output of every worker: {logs}. Go on with"
            " --resume."
        )
    if not records:
        return WorkerFailed(
            f"a worker failed: {str(error).strip().splitlines()[0]}. Output of every worker:"
            f" {logs}."
        )
    first = min(records, key=lambda record: (not record["is_user_error"], record["time"]))
    if first["is_user_error"]:
        return UserError(first["cause"])
    where = "" if first["where"] is None else f" at {first['where']}"
    cause = first["cause"].splitlines()[0].rstrip(".")
    return WorkerFailed(
        f"worker {first['rank']} failed{where}: {first['kind']}: {cause}. Output of every worker:"
        f" {logs}."
    )


class _Tee:
    """Writes to two places; for the rest it is the first."""

    def __init__(self, first: Any, second: Any) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        self._second.write(text)
        return int(self._first.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)
