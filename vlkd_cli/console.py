"""What vlkd prints on the terminal: lines, tables and the progress of training. Only rank 0
prints.

rich is imported when something is printed with it, so that commands that print one line start
quickly.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from vlkd_cli.ranks import is_first

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


SHORTEST_SECRET = 4
"""Shorter values would be found in the middle of other words."""
BAR_WIDTH = 10
"""Columns that the progress bar of training always shows, however narrow the terminal is."""
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?[%KMBG]?")

_announced = False
"""Whether a note of `announce` is on the screen."""


_hidden: dict[str, str] = {}


def hide(value: str, written: str) -> None:
    """Have everything that is printed or logged show `written` instead of a secret value."""
    if len(value) >= SHORTEST_SECRET:
        _hidden[value] = written


def without_secrets(text: str) -> str:
    """The text with hidden values as they were written."""
    for value, written in _hidden.items():
        text = text.replace(value, written)
    return text


def announce(text: str) -> None:
    """A note on what takes its time, on a terminal only; the next line replaces it."""
    global _announced
    if is_first() and sys.stderr.isatty():
        take_back()
        print(text, end="", file=sys.stderr, flush=True)
        _announced = True


def take_back() -> None:
    """Remove what `announce` wrote."""
    global _announced
    if _announced:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
        _announced = False


def say(text: str) -> None:
    """One line on standard output, exactly as given."""
    if is_first():
        take_back()
        print(_printable(text, sys.stdout), flush=True)


def note(text: str) -> None:
    """One line on standard error, for commands whose standard output is data."""
    if is_first():
        take_back()
        print(_visible(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning on standard error: one line with what is unusual and what to do."""
    if is_first():
        label = "warning: "
        if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
            label = f"\033[1;33m{label}\033[0m"
        take_back()
        # No rich here: nothing of the text may be taken for markup.
        print(f"{label}{_visible(text)}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(text: str) -> None:
    """A warning that this process prints only once, however often the same data is opened."""
    warn(text)


def error(text: str) -> None:
    """An error on standard error, whatever the rank; several problems are several lines, each
    starting with `file:line:` if it is known."""
    take_back()
    print(_visible(text), file=sys.stderr, flush=True)


def _visible(text: str) -> str:
    """The text without secrets, and with control characters, e.g. a terminal's, written as escapes:
    messages repeat what is in files."""
    text = without_secrets(text)
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp")
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _printable(text: str, file: TextIO) -> str:
    """The text without secrets, and with letters that the file's encoding lacks written as
    escapes."""
    text = without_secrets(text)
    encoding = file.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output. Columns whose cells are all numbers or dashes are set to the
    right; None is an empty cell."""
    if not is_first():
        return
    take_back()
    from rich.table import Table

    cells = [[_cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        _print_plain(title, columns, cells)
        return
    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold"
    )
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if _is_numeric(cells, number) else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*(_escape(cell) for cell in row))
    _console(sys.stdout).print(table)


def training_progress(
    total_steps: int, steps_per_epoch: int, quiet: bool = False, *, start_step: int = 0
) -> TrainingProgress:
    """A context manager that shows how training proceeds; see `TrainingProgress.update`."""
    return TrainingProgress(total_steps, steps_per_epoch, quiet, start_step=start_step)


class TrainingProgress:
    """Progress of training: a bar on a terminal, a plain line every few seconds elsewhere, nothing
    when quiet or on other ranks.

    Args:
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of an epoch.
        quiet: show nothing.
        start_step: steps that were taken before, when a run is continued; they do not count in the
            time left.
        line_every_seconds: least time between two plain lines.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        quiet: bool = False,
        *,
        start_step: int = 0,
        line_every_seconds: float = 10.0,
    ) -> None:
        self.total_steps = total_steps
        self.steps_per_epoch = max(steps_per_epoch, 1)
        self.start_step = start_step
        self.line_every_seconds = line_every_seconds
        self._shown = is_first() and not quiet
        self._on_terminal = self._shown and sys.stdout.isatty()
        self._progress: Progress | None = None
        self._task: Any = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        self._started = time.monotonic()
        # The first update prints a line at once.
        self._last_line = self._started - self.line_every_seconds
        take_back()
        if self._on_terminal:
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            self._progress = Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=None, table_column=Column(min_width=BAR_WIDTH, ratio=1)),
                TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
                expand=True,
                console=_console(sys.stdout),
                refresh_per_second=4,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                "starting", total=self.total_steps, completed=self.start_step, status=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def update(
        self,
        step: int,
        *,
        epoch: int | None = None,
        loss: float | None = None,
        lr: float | None = None,
        samples_per_second: float | None = None,
        data_wait: float | None = None,
    ) -> None:
        """Show where training is.

        Args:
            step: optimizer steps done, from 1.
            epoch: the epoch under way, from 0; by default computed from the step.
            data_wait: fraction of the time that was spent waiting for data, 0 to 1.
        """
        if not self._shown:
            return
        now = time.monotonic()
        epoch = (max(step, 1) - 1) // self.steps_per_epoch if epoch is None else epoch
        num_epochs = -(-self.total_steps // self.steps_per_epoch)
        head = f"epoch {epoch + 1}/{max(num_epochs, epoch + 1)}  step {step}/{self.total_steps}"
        parts = {
            "loss": f"loss {loss:.4f}" if loss is not None else "",
            "lr": f"lr {lr:.2e}" if lr is not None else "",
            "rate": f"{samples_per_second:.0f} samples/s" if samples_per_second is not None else "",
            "wait": f"data wait {data_wait:.0%}" if data_wait is not None else "",
            "left": f"{duration(self._seconds_left(step, now))} left",
        }
        if self._progress is not None:
            width = self._progress.console.width - len(head) - BAR_WIDTH - 2
            status = _fitting(parts, width)
            self._progress.update(self._task, completed=step, description=head, status=status)
        elif now - self._last_line >= self.line_every_seconds or step >= self.total_steps:
            self._last_line = now
            print("  ".join([head, *filter(None, parts.values())]), flush=True)

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if not is_first():
            return
        if self._progress is not None:
            self._progress.console.print(
                without_secrets(text), markup=False, highlight=False, soft_wrap=True
            )
        else:
            print(_printable(text, sys.stdout), flush=True)

    def _seconds_left(self, step: int, now: float) -> float:
        done = step - self.start_step
        return (now - self._started) / done * max(self.total_steps - step, 0) if done > 0 else 0.0


def _fitting(parts: Mapping[str, str], width: int) -> str:
    """The parts side by side; where they do not fit, without those that matter least."""
    shown = {name: part for name, part in parts.items() if part}
    for name in ("wait", "lr", "rate", "left", "loss"):
        if len("  ".join(shown.values())) <= width:
            break
        shown.pop(name, None)
    return "  ".join(shown.values())


def duration(seconds: float) -> str:
    """Seconds as people write them: 42s, 3m05s, 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _console(file: TextIO) -> Console:
    from rich.console import Console

    return Console(file=file, highlight=False)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (
            f"{value:.4g}"
            if abs(value) >= 1000 or 0 < abs(value) < 0.001
            else f"{value:.4f}".rstrip("0").rstrip(".")
        )
    return str(value)


def _is_numeric(cells: Sequence[Sequence[str]], column: int) -> bool:
    texts = [row[column] for row in cells if row[column] not in ("", "-")]
    return bool(texts) and all(_NUMBER.fullmatch(text) for text in texts)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_plain(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Without a terminal: aligned by spaces, never folded, so that every line can be searched."""
    widths = [
        max(len(text) for text in (column, *(row[number] for row in cells)))
        for number, column in enumerate(columns)
    ]
    numeric = [_is_numeric(cells, number) for number in range(len(columns))]
    if title:
        print(title)
    for row in (columns, ["-" * width for width in widths], *cells):
        parts = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print(_printable("  ".join(parts).rstrip(), sys.stdout))
    sys.stdout.flush()
