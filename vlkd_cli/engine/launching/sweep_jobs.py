"""Run the cells of a sweep as processes, several at a time, next to equal commands elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import IO

from vlkd_cli import console
from vlkd_cli.claims import claimed
from vlkd_cli.engine.launching.interruption import Interruption
from vlkd_cli.errors import UserError
from vlkd_cli.reports.outcome import outcome_line
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.state import read_state

SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class Outcome:
    """How the jobs ended."""

    failed: list[str] = field(default_factory=list)
    signal_number: int | None = None


@dataclass
class _Job:
    number: int
    process: Popen[bytes]
    devices: list[str]
    log: IO[bytes]
    claim: contextlib.ExitStack


def run_jobs(
    commands: Sequence[Sequence[str]],
    root: Path,
    folders: Sequence[str],
    *,
    shared: Sequence[str | None],
    jobs: int,
    gpus_per_job: int,
) -> Outcome:
    """Run `vlkd COMMAND` for each cell that is not finished and that no other process runs.

    On GPUs every job gets devices of its own out of the visible ones; on CPUs the cores are divided
    among the jobs. SIGINT and SIGTERM go to all of them, which save and stop.

    Args:
        root: folder of the sweep; output goes to `logs/` in it.
        folders: of the cells' runs.
        shared: what the cached features of each cell depend on. The first cell of each runs alone
            until they are written, so that they are computed once. None: nothing is cached.
        jobs: processes at a time.

    Raises:
        UserError: there are too few GPUs, or the folder cannot be written.
    """
    return _Pool(commands, root, folders, shared, jobs, gpus_per_job).run()


class _Pool:
    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        root: Path,
        folders: Sequence[str],
        shared: Sequence[str | None],
        jobs: int,
        gpus_per_job: int,
    ) -> None:
        self.commands, self.root, self.folders, self.shared = commands, root, folders, shared
        self.jobs, self.gpus_per_job = jobs, gpus_per_job
        self.devices = visible_devices()
        self.free = list(self.devices)
        if self.devices and jobs * gpus_per_job > len(self.devices):
            raise UserError(
                f"--jobs {jobs} with {gpus_per_job} GPU(s) each: there are {len(self.devices)}"
                " here. Lower one of them."
            )
        self.running: list[_Job] = []
        self.waiting = [
            number for number in range(len(commands)) if self._state(number) != "finished"
        ]
        self.outcome = Outcome()
        self.cached: set[str] = set()

    def run(self) -> Outcome:
        """Start and collect jobs until none is left."""
        done = len(self.commands) - len(self.waiting)
        console.say(
            f"{len(self.commands)} cells: {done} finished before, {len(self.waiting)} to run"
        )
        with self._stopping_jobs(), Interruption().passed_on(self._send):
            while self.running or (self.waiting and self.outcome.signal_number is None):
                while self._start_next():
                    pass
                if not self.running:
                    break  # what is left is being run by others
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for job in [job for job in self.running if job.process.poll() is not None]:
                    self._collect(job)
        return self.outcome

    def _start_next(self) -> bool:
        """Start one job if there is room; whether it was."""
        if len(self.running) >= self.jobs or self.outcome.signal_number is not None:
            return False
        for number in list(self.waiting):
            if self._waits_for_features(number):
                continue
            self.waiting.remove(number)
            claim = contextlib.ExitStack()
            path = self.root / "locks" / f"{self.folders[number]}.lock"
            is_mine = claim.enter_context(claimed(path))
            # Of a sweep that was killed, a job may still run.
            if not is_mine or self._state(number) in ("finished", "running"):
                claim.close()
                continue
            try:
                self.running.append(self._start(number, claim))
            except BaseException:
                claim.close()
                raise
            return True
        return False

    def _start(self, number: int, claim: contextlib.ExitStack) -> _Job:
        name = self.folders[number]
        devices = [self.free.pop(0) for _ in range(self.gpus_per_job if self.devices else 0)]
        environment = dict(os.environ)
        words = [sys.executable, "-m", "vlkd_cli", *self.commands[number]]
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
            words += ["--gpus", str(len(devices))]
        elif self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment["OMP_NUM_THREADS"] = str(threads)
        logs = self.root / "logs"
        try:
            logs.mkdir(parents=True, exist_ok=True)
            log = (logs / f"{name}.log").open("ab")
        except OSError as error:
            raise UserError(f"cannot write {logs}: {error.strerror}. Make room.") from error
        # In a session of its own: Ctrl-C reaches it once, through this process.
        process = Popen(words, stdout=log, stderr=STDOUT, env=environment, start_new_session=True)
        return _Job(number, process, devices, log, claim)

    def _collect(self, job: _Job) -> None:
        self.running.remove(job)
        self.free += job.devices
        job.log.close()
        job.claim.close()
        name, status = self.folders[job.number], job.process.returncode
        if self.outcome.signal_number is not None:
            return
        label = f"[{job.number}] {name}"
        if status:
            self.outcome.failed.append(name)
            state = read_state(self.root / name)
            reason = (state.error if state else None) or _last_line(Path(job.log.name))
            if status < 0:
                reason = f"killed by signal {-status}; its output is in {job.log.name}"
            was_stopped = state is not None and state.state == "stopped"
            console.say(f"{label}: {'stopped' if was_stopped else 'failed'}: {reason}")
        else:
            console.say(f"{label}: {outcome_line(read_run(self.root / name)) or 'finished'}")

    def _state(self, number: int) -> str | None:
        state = read_state(self.root / self.folders[number])
        return None if state is None else state.state

    def _waits_for_features(self, number: int) -> bool:
        """Whether a job that computes the same features has not written them yet."""
        key = self.shared[number]
        if key is None or key in self.cached:
            return False
        for job in self.running:
            if self.shared[job.number] == key:
                # Steps are counted once the features are there.
                state = read_state(self.root / self.folders[job.number])
                if state is None or state.total_steps is None:
                    return True
                self.cached.add(key)
        return False

    def _send(self, number: int) -> None:
        self.outcome.signal_number = self.outcome.signal_number or number
        for job in self.running:
            if job.process.poll() is None:
                job.process.send_signal(number)

    @contextlib.contextmanager
    def _stopping_jobs(self) -> Iterator[None]:
        """Stop what still runs at the end: something only after an error of our own."""
        try:
            yield
        finally:
            for job in self.running:
                job.process.terminate()
                job.process.wait()
                job.log.close()
                job.claim.close()


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended without a word"
