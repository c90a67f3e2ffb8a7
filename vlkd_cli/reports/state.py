"""`state.json`: whether a run is running, finished, stopped or failed, and how far it came."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Literal

from vlkd_cli import console
from vlkd_cli.claims import STALE_SECONDS, process_exists
from vlkd_cli.data.files.texts import read_json

FILE = "state.json"
SECONDS_BETWEEN_WRITES = 30.0

StateName = Literal["running", "finished", "stopped", "failed", "killed"]
STATES = ("running", "finished", "stopped", "failed")


@dataclass(frozen=True)
class RunState:
    """The content of `state.json`. Times are UTC in ISO 8601; `killed` is never written, but
    concluded from a running process that is gone."""

    state: StateName
    step: int = 0
    total_steps: int | None = None
    best: float | None = None
    best_step: int | None = None
    host: str = ""
    pid: int = 0
    started: str = ""
    updated: str = ""
    error: str | None = None


class StateFile:
    """Writes the state of the run that this process trains.

    The file is replaced in one move, at most every 30 seconds while training proceeds. A disk that
    cannot be written costs a warning, never the run.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = _read(folder) or RunState("running")
        self._written = -SECONDS_BETWEEN_WRITES

    def begin(self, *, resumed: bool) -> None:
        """The run starts; a resumed run retains what was reached before."""
        before = self._state if resumed else RunState("running")
        self._state = replace(
            before,
            state="running",
            host=socket.gethostname(),
            pid=os.getpid(),
            started=before.started or _now(),
            error=None,
        )
        self._write()

    def proceed(self, step: int, total_steps: int, *, write: bool = False) -> None:
        """Training has come to `step` in this process; `write` does not wait for the 30 seconds."""
        self._state = replace(self._state, step=step, total_steps=total_steps, pid=os.getpid())
        if write or time.monotonic() - self._written >= SECONDS_BETWEEN_WRITES:
            self._write()

    def note_best(self, value: float, step: int) -> None:
        """The watched result reached a new best value."""
        self._state = replace(self._state, step=step, best=value, best_step=step)
        self._write()

    def forget_best(self) -> None:
        """The checkpoint with the best value is no longer part of the run."""
        self._state = replace(self._state, best=None, best_step=None)
        self._write()

    def end(self, state: StateName, error: str | None = None) -> None:
        """The run is over; `error` is the line that a failed one ended with."""
        self._state = replace(self._state, state=state, error=error)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._state = replace(self._state, updated=_now())
        partial = self.folder / f"{FILE}.partial"
        try:
            partial.write_text(json.dumps(asdict(self._state), indent=2) + "\n", encoding="utf-8")
            partial.replace(self.folder / FILE)
        except OSError as error:
            console.warn(
                f"{self.folder / FILE} cannot be written: {error.strerror}. `vlkd runs` shows an"
                " older state of this run."
            )


_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("step", "pid"), int),
    **dict.fromkeys(("total_steps", "best_step"), int | None),
    "best": int | float | None,
    **dict.fromkeys(("host", "started", "updated"), str),
    "error": str | None,
}
"""Types of the values in the file; one of another type makes it unreadable."""


def read_state(folder: Path) -> RunState | None:
    """The state of a run; a running one whose process is gone is "killed". None where the folder
    has no readable `state.json`."""
    found = _read(folder)
    if found is not None and found.state == "running" and not _is_alive(found):
        return replace(found, state="killed")
    return found


def _read(folder: Path) -> RunState | None:
    try:
        plain = read_json(folder / FILE)
    except (OSError, ValueError):
        return None
    if not isinstance(plain, dict) or plain.get("state") not in STATES:
        return None
    known = {name: plain[name] for name in _KINDS if name in plain}
    if not all(isinstance(value, _KINDS[name]) for name, value in known.items()):
        return None
    return RunState(state=plain["state"], **known)


def _is_alive(state: RunState) -> bool:
    if state.host == socket.gethostname():
        return process_exists(state.pid)
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(state.updated)
    except (TypeError, ValueError):
        return False
    return age.total_seconds() < STALE_SECONDS


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
