"""Trainings that take turns: each lives in a process of its own and runs one epoch when it is asked
to, so that all meet the same machine.

A training's process marks its epochs with `Epochs`; the benchmark starts the processes and calls
`take_turns`. Starting up, the first epoch and the last one (which saves) are not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
READING, WRITING = "TURNS_READING", "TURNS_WRITING"


class Cost(NamedTuple):
    """Seconds of CPU (loader processes included) and wall time."""

    cpu: float
    wall: float


class Epochs:
    """In a training's process: waits for its turn before each epoch and reports what the epoch
    cost."""

    def __init__(self) -> None:
        self._reading = os.fdopen(int(os.environ[READING]))
        self._writing = int(os.environ[WRITING])

    @contextlib.contextmanager
    def epoch(self) -> Iterator[None]:
        os.write(self._writing, b"waiting\n")
        if not self._reading.readline():
            os._exit(0)
        cpu, wall = _cpu_seconds(), time.perf_counter()
        yield
        cost = [_cpu_seconds() - cpu, time.perf_counter() - wall]
        os.write(self._writing, json.dumps(cost).encode() + b"\n")


def _cpu_seconds() -> float:
    """Of this process, its children that ended and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = time.process_time() + ended.ru_utime + ended.ru_stime
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            with contextlib.suppress(OSError):  # it may end while it is looked at
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Training:
    """One side of a comparison, in a process of its own with one thread.

    Args:
        command: the program.
        log: where its output goes.
        environment: variables in addition to the usual ones.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        reading, self._writing = os.pipe()
        read_back, writing = os.pipe()
        self._log = log
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
        told = {
            READING: str(reading),
            WRITING: str(writing),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(reading, writing),
                env=os.environ | threads | path | told | dict(environment or {}),
            )
        os.close(reading)
        os.close(writing)
        self._answers = os.fdopen(read_back)
        self._expect()

    def epoch(self) -> Cost:
        """Let it run its next epoch."""
        os.write(self._writing, b"go\n")
        cost = Cost(*json.loads(self._expect()))
        self._expect()
        return cost

    def end(self) -> None:
        """Stop it where it waits."""
        os.close(self._writing)
        self._process.wait(timeout=60)
        self._answers.close()

    def _expect(self) -> str:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("a training ended early:\n" + self._log.read_text()[-3000:])
        return line


def take_turns(
    trainings: Mapping[str, Training], *, rounds: int, warm_up: int = 1
) -> dict[str, Cost]:
    """Median costs of an epoch of each, measured in turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in trainings}
    for number in range(warm_up + rounds):
        for name, training in trainings.items():
            cost = training.epoch()
            if number >= warm_up:
                costs[name].append(cost)
    for training in trainings.values():
        training.end()
    return {
        name: Cost(*(statistics.median(column) for column in zip(*taken, strict=True)))
        for name, taken in costs.items()
    }


def epochs_needed(rounds: int, warm_up: int = 1) -> int:
    """Epochs that a training must be set to, so that `take_turns` never reaches its last."""
    return warm_up + rounds + 2


def report(what: str, ours: Cost, peer: Cost, *, samples: int, floor: float | None = None) -> bool:
    """Print samples per CPU second and per wall second of both sides, and the ratios; whether the
    floor holds for the CPU's."""
    ratio = peer.cpu / ours.cpu
    wanted = "" if floor is None else f"   (at least {floor:g} wanted)"
    print(
        f"{what:32} vlkd {samples / ours.cpu:9.1f}/s CPU {samples / ours.wall:9.1f}/s wall   "
        f"open_clip {samples / peer.cpu:7.1f}/s CPU {samples / peer.wall:7.1f}/s wall   "
        f"ratio CPU {ratio:.2f} wall {peer.wall / ours.wall:.2f}{wanted}"
    )
    sys.stdout.flush()
    return floor is None or ratio >= floor
