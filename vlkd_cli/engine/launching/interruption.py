"""Ctrl-C and SIGTERM as a request to stop at the next safe point, here or in child processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_SECONDS = 1.0
"""The same signal again within this time is the same wish."""


class Interrupted(BaseException):
    """Raised where work may be dropped at once (an evaluation, the filling of a cache)."""


class Interruption:
    """Holds which signal asked to stop.

    Between steps the trainer asks `signal_number`; within `dropping()` the signal raises
    Interrupted at once. The same signal again, more than ECHO_SECONDS later, raises
    KeyboardInterrupt, for those who cannot wait.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._noted_at = 0.0
        self._drops = False

    @contextmanager
    def watched(self) -> Iterator[Interruption]:
        """Take over SIGINT and SIGTERM, and give them back at the end."""
        with _handled_by(self._note):
            yield self

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Work that may be abandoned in the middle."""
        self._drops = True
        try:
            if self.signal_number is not None:
                raise Interrupted
            yield
        finally:
            self._drops = False

    @contextmanager
    def passed_on(self, send: Callable[[int], None]) -> Iterator[Interruption]:
        """Take over SIGINT and SIGTERM for child processes, which save and stop: `send` gives each
        of them the signal. `signal_number` is the first one."""

        def pass_on(number: int, frame: FrameType | None) -> None:
            self.signal_number = self.signal_number or number
            send(number)

        with _handled_by(pass_on):
            yield self

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A terminal sends SIGINT to the whole group, and torch's agent passes it on to its workers:
        # that is one wish to stop, not two.
        if self.signal_number == number and time.monotonic() - self._noted_at > ECHO_SECONDS:
            raise KeyboardInterrupt
        if self.signal_number is None:
            self.signal_number, self._noted_at = number, time.monotonic()
            if self._drops:
                raise Interrupted


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
