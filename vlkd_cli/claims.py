"""Claims on pieces of work that several processes share through a file system: equal commands on
one or several machines, jobs of a sweep."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vlkd_cli.errors import UserError

TOUCH_SECONDS = 30.0
STALE_SECONDS = 300.0
"""A claim of another host that nobody has touched for so long is nobody's."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the claim file `path` if it is free; whether it was.

    The file names host, process and start, is created exclusively and touched every 30 seconds. It
    is stale, and taken over, once its process is gone from this host or nobody has touched it for
    five minutes.

    Raises:
        UserError: the folder cannot be written.
    """
    done = threading.Event()
    keeper = threading.Thread(target=_touch, args=(path, done), daemon=True)
    is_mine = False
    try:
        # A signal that came in between would leave the file.
        with _signals_held():
            is_mine = _take(path)
            if is_mine:
                keeper.start()
        yield is_mine
    finally:
        if is_mine:
            with _signals_held():
                done.set()
                keeper.join()
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """SIGINT and SIGTERM come at the end. Not masked: another thread would get them at once, and
    Python would handle them here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    former = {
        number: signal.signal(number, lambda got, frame: came.append(got))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for got in came:
            signal.raise_signal(got)


def is_claimed(path: Path) -> bool:
    """Whether a process that still runs holds the claim."""
    return path.is_file() and not _is_stale(path)


def process_exists(pid: int) -> bool:
    """Whether a process of this host has this number and has not ended yet."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, TypeError):
        return False
    except PermissionError:
        # It belongs to another user.
        return True
    return pid > 0 and not _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """Whether only the process's exit status is left: in a container without an init process, what
    lost its parent stays so forever."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # not Linux, or gone this moment
    return status.rpartition(")")[2].split()[:1] in (["Z"], ["X"])


def _take(path: Path) -> bool:
    content = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "start": time.time()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                with path.open("x", encoding="utf-8") as file:
                    file.write(content)
                return True
            except FileExistsError:
                if not _is_stale(path) or not _remove_stale(path):
                    return False
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}. Make room, or choose a folder"
            " that you may write."
        ) from error
    return False


def _remove_stale(path: Path) -> bool:
    """Take a stale claim away; False where another process was faster. It is renamed first, which
    only one of several can do, and looked at again, for it may be a newer one."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    if _is_stale(aside):
        aside.unlink(missing_ok=True)
        return True
    with contextlib.suppress(FileExistsError, OSError):
        os.link(aside, path)
    aside.unlink(missing_ok=True)
    return False


def _is_stale(path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        holder = json.loads(path.read_text(encoding="utf-8"))
        on_this_host = holder["host"] == socket.gethostname()
        pid = int(holder["pid"])
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        # Just created and not yet written, or cut off by a full disk.
        return age > STALE_SECONDS
    return age > STALE_SECONDS or (on_this_host and not process_exists(pid))


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
