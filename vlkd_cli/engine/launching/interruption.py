"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
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
        former = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

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

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A terminal sends SIGINT to the whole group, and torch's agent passes it on to its workers:
        # that is one wish to stop, not two.
        if self.signal_number == number and time.monotonic() - self._noted_at > ECHO_SECONDS:
            raise KeyboardInterrupt
        if self.signal_number is None:
            self.signal_number, self._noted_at = number, time.monotonic()
            if self._drops:
                raise Interrupted
