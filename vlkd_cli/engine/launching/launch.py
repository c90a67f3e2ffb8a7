"""Start workers: in this process, through torch's elastic agent, or as a member of a torchrun or
SLURM job that is already there."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from vlkd_cli import console
from vlkd_cli.errors import UserError, ran_out_of_memory
from vlkd_cli.ranks import joins_running_job

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

Job = TypeVar("Job")

ANSWER_SECONDS = 3.0
"""How long a worker that was stopped offers its answer; agents look ten times a second."""
GOODBYE_SECONDS = 5.0
"""How long the agents of several nodes wait for each other at the end; with torch's default of 300
s a command runs on long after its own workers are done."""
SAVE_SECONDS = 600
"""How long a worker may take after a signal, for its step and its checkpoint, before it is
killed."""
LOST = "NodeLost"
"""How a record calls what the heartbeat noticed."""


@dataclass(frozen=True)
class Placement:
    """Where workers run.

    Args:
        workers: processes on this machine.
        device: "cuda" or "cpu".
        nodes, node_rank, rendezvous: machines of the job, this one's number, and HOST:PORT of the
            first.
        max_restarts: how often a failed group is started again from its last checkpoint.
        heartbeat_seconds: how long a worker may be silent before the run ends; None: no limit.
    """

    workers: int = 1
    device: str = "auto"
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    max_restarts: int = 0
    heartbeat_seconds: float | None = 30.0


class ConnectionLost(UserError):
    """A collective failed because a process of another node is gone; names the node."""


class WorkerFailed(UserError):
    """A worker ended the run; the text names rank, step and cause."""


def quieten_libraries() -> None:
    """Silence the log messages of libraries; --verbose shows them. Workers inherit the
    settings."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    # DDP reports on standard error that every parameter was used.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.simplefilter("ignore")


def run_workers(target: Callable[[Job], int], job: Job, placement: Placement, logs: Path) -> int:
    """Run `target(job)` on every worker and return the first one's answer.

    Under torchrun or SLURM this process is one worker of a job that exists. Otherwise one worker
    runs right here, and several are spawned by the elastic agent, their output saved in `logs` and
    that of the first one shown.

    Raises:
        UserError: what a worker raised for the user.
        WorkerFailed: a worker died; names rank, step and cause.
    """
    if joins_running_job():
        return _join(target, job, placement)
    if placement.workers == 1 and placement.nodes == 1 and placement.max_restarts == 0:
        try:
            return target(job)
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"not enough memory: {reason}. Lower train.batch_size or the sizes of the towers."
            ) from error
    return _spawn(target, job, placement, logs)


def _join(target: Callable[[Job], int], job: Job, placement: Placement) -> int:
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

    def report(line: str) -> None:
        console.error(line)
        sys.stderr.flush()
        os._exit(2)

    return _in_group(target, job, placement.heartbeat_seconds, report)


def first_host(nodelist: str) -> str:
    """The first machine of a SLURM node list: "gpu[03-05,9],login" -> "gpu03"."""
    head = nodelist.split(",")[0] if "[" not in nodelist.split(",")[0] else nodelist
    if "[" not in head:
        return head
    prefix, rest = head.split("[", 1)
    inside, _, suffix = rest.partition("]")
    return prefix + inside.split(",")[0].split("-")[0] + suffix.split(",")[0]


def _in_group(
    target: Callable[[Job], int],
    job: Job,
    heartbeat_seconds: float | None,
    on_loss: Callable[[str], None],
) -> int:
    from vlkd_cli.distributed.heartbeat import beating, describe_broken
    from vlkd_cli.distributed.runtime import pick_device, process_group

    with (
        process_group(pick_device(getattr(job, "device", "auto"))),
        beating(heartbeat_seconds, on_loss) as members,
    ):
        try:
            return target(job)
        except RuntimeError as error:
            line = describe_broken(error, members)
            if line is None:
                raise
            raise ConnectionLost(line) from error


def _spawn(target: Callable[[Job], int], job: Job, placement: Placement, logs: Path) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException

    console.take_back()
    logs.mkdir(parents=True, exist_ok=True)
    _log_agent(logs / "agent.log")
    for old in logs.glob("failure_rank_*.json"):
        old.unlink(missing_ok=True)
    # One thread each unless the user sets OMP_NUM_THREADS: workers that all use every core are
    # slower than one.
    os.environ.setdefault(
        "OMP_NUM_THREADS",
        str(max(1, (os.cpu_count() or 1) // placement.workers) if placement.device == "cpu" else 1),
    )
    with _met(placement, quiet=bool(getattr(job, "quiet", False))):
        agent = _agent(placement, logs, (target, job, str(logs), placement.heartbeat_seconds))
        rendezvous = agent.get_worker_group().spec.rdzv_handler
        try:
            result = agent.run()
        except SignalException as error:
            return int(error.sigval)
        except BaseException:
            rendezvous.shutdown()
            raise
        rendezvous.shutdown()
    if result.is_failed():
        raise _explain(result.failures, logs, placement.node_rank)
    answers = result.return_values
    return int(answers.get(0, next(iter(answers.values()), 0)) or 0)


def _met(placement: Placement, *, quiet: bool) -> AbstractContextManager[None]:
    """All nodes are there; a single one has nobody to wait for."""
    if placement.nodes == 1 or placement.rendezvous is None:
        return contextlib.nullcontext()
    from vlkd_cli.distributed.meeting import nodes_met

    notice = None if quiet else console.say
    return nodes_met(placement.rendezvous, placement.node_rank, placement.nodes, notice=notice)


def _agent(placement: Placement, logs: Path, arguments: tuple[object, ...]) -> LocalElasticAgent:
    """The elastic agent of torch, made here because `elastic_launch` does not let us set how long
    agents wait for each other."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    from vlkd_cli.distributed.meeting import parse_endpoint

    is_alone = placement.nodes == 1
    endpoint = placement.rendezvous or "127.0.0.1:0"
    address, port = (None, None) if is_alone else parse_endpoint(endpoint)
    local_address = "127.0.0.1" if is_alone else None
    handler = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d" if is_alone else "static",
            endpoint=endpoint,
            run_id="vlkd",
            min_nodes=placement.nodes,
            max_nodes=placement.nodes,
            local_addr=local_address,
            rank=placement.node_rank,
            timeout=600,
        )
    )
    spec = WorkerSpec(
        role="default",
        local_world_size=placement.workers,
        rdzv_handler=handler,
        entrypoint=_member,
        args=arguments,
        max_restarts=placement.max_restarts,
        monitor_interval=0.1,
        master_addr=address,
        master_port=port,
        local_addr=local_address,
    )
    # Not an argument in older versions of torch.
    has_limit = "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters
    limit: dict[str, Any] = {"shutdown_timeout": SAVE_SECONDS} if has_limit else {}
    return LocalElasticAgent(
        spec,
        DefaultLogsSpecs(log_dir=str(logs)),
        exit_barrier_timeout=GOODBYE_SECONDS,
        **limit,
    )


def _log_agent(path: Path) -> None:
    """Send the log of torch's agent to a file: its tracebacks only show where it waited; the cause
    of a worker's failure is reported in one line."""
    for name in (
        "torch.distributed.elastic",
        "torch.distributed.launcher",
        "torch.multiprocessing",
    ):
        logger = logging.getLogger(name)
        logger.handlers = [logging.FileHandler(path, encoding="utf-8")]
        logger.propagate = False


def _member(
    target: Callable[[Job], int], job: Job, logs: str, heartbeat_seconds: float | None
) -> int:
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

    def fail(record: dict[str, object]) -> None:
        path = Path(logs) / f"failure_rank_{rank}.json"
        path.write_text(json.dumps({"rank": rank, "time": time.time(), **record}), encoding="utf-8")
        # Leave without the interpreter's own report (it is in the log) and without destructors that
        # wait for the other ranks.
        sys.stderr.flush()
        os._exit(1)

    node = int(os.environ.get("GROUP_RANK", "0"))

    def lose(line: str) -> None:
        log.write(line + "\n")
        fail({"node": node, "where": None, "cause": line, "kind": LOST, "is_user_error": True})

    try:
        answer = _in_group(target, job, heartbeat_seconds, lose)
        if answer:
            # Stopped by a signal. Torch holds a worker until its result was read, and an agent
            # that got the signal too reads none, but waits and kills.
            leave = threading.Timer(ANSWER_SECONDS, os._exit, (0,))
            leave.daemon = True
            leave.start()
        return answer
    except BaseException as error:
        log.write(console.without_secrets(traceback.format_exc()))
        fail(
            {
                "node": node,
                "where": next(iter(getattr(error, "__notes__", [])), None),
                "cause": console.without_secrets(str(error) or type(error).__name__).strip(),
                "kind": type(error).__name__,
                "is_user_error": isinstance(error, UserError),
            }
        )
        raise


def _explain(failures: Mapping[int, ProcessFailure], logs: Path, node: int) -> UserError:
    """One line from the failures that the workers wrote, the earliest being the cause of the
    others.

    Nodes share the folder: a lost node that another node reports may be this one. A lost
    connection only follows from another failure, which is preferred if there is one.
    """
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in logs.glob("failure_rank_*.json")
    ]
    records = [each for each in records if each["node"] == node or each["kind"] != LOST]
    causes = [each for each in records if each["kind"] != ConnectionLost.__name__]
    killed = [(rank, failure) for rank, failure in failures.items() if failure.exitcode < 0]
    own = [(rank, failure) for rank, failure in killed if failure.exitcode not in (-15, -2)]
    if own and not any(record["is_user_error"] for record in causes):
        rank, failure = own[0]
        name = (
            failure.signal_name()
            if callable(getattr(failure, "signal_name", None))
            else f"signal {-failure.exitcode}"
        )
        hint = " (often: out of memory)" if failure.exitcode == -9 else ""
        return WorkerFailed(
            f"worker {rank} was killed by {name}{hint}. Output of every worker: {logs}. Continue"
            " with --resume."
        )
    if not records:
        rank, failure = next(iter(failures.items()))
        return WorkerFailed(
            f"worker {rank} ended with exit code {failure.exitcode}. Output of every worker:"
            f" {logs}."
        )
    first = min(
        causes or records,
        key=lambda record: (record["kind"] != LOST, not record["is_user_error"], record["time"]),
    )
    if first["is_user_error"]:
        return UserError(first["cause"])
    where = "" if first["where"] is None else f" at {first['where']}"
    cause = first["cause"].splitlines()[0].rstrip(".")
    return WorkerFailed(
        f"worker {first['rank']} failed{where}: {first['kind']}: {cause}. Output of every worker:"
        f" {logs}."
    )


class _Tee:
    """Writes to two streams; otherwise behaves as the first."""

    def __init__(self, first: IO[str], second: IO[str]) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        self._second.write(text)
        return int(self._first.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)
