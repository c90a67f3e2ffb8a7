"""A claim is one process's at a time, and nobody's once that process is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlkd_cli import claims
from vlkd_cli.claims import claimed, is_claimed
from vlkd_cli.errors import UserError


def test_a_claim_is_held_once_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    with claimed(path) as first, claimed(path) as second:
        assert (first, second, is_claimed(path)) == (True, False, True)
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists() and not is_claimed(path)


def test_an_error_frees_the_claim(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), claimed(tmp_path / "a.lock"):
        raise ValueError("inside")
    with claimed(tmp_path / "a.lock") as free:
        assert free


def test_a_signal_while_the_claim_is_taken_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take = tmp_path / "a.lock", claims._take
    # torch.distributed's launcher leaves a handler of its own behind in the process that tests it.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(path: Path) -> bool:
        signal.raise_signal(signal.SIGINT)
        return take(path)

    monkeypatch.setattr(claims, "_take", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), claimed(path):
            pytest.fail("the signal was lost")
    finally:
        signal.signal(signal.SIGINT, former)
    assert not path.exists()


def gone_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.parametrize(
    ("host", "lives", "age", "free"),
    [
        ("here", False, 0, True),
        ("here", True, 0, False),
        ("elsewhere", False, 0, False),
        ("elsewhere", False, 301, True),
        ("here", True, 301, True),
    ],
)
def test_a_claim_is_stale_without_its_process_or_after_five_minutes(
    tmp_path: Path, host: str, lives: bool, age: int, free: bool
) -> None:
    path = tmp_path / "a.lock"
    holder = {
        "host": socket.gethostname() if host == "here" else "another-host",
        "pid": os.getpid() if lives else gone_process(),
    }
    path.write_text(json.dumps(holder))
    os.utime(path, (time.time() - age,) * 2)
    assert is_claimed(path) is not free
    with claimed(path) as taken:
        assert taken is free


@pytest.mark.parametrize("content", ["", "[]", '{"host": "x"', "{}"])
def test_a_claim_that_cannot_be_read_is_held_until_it_is_old(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.lock"
    path.write_text(content)
    with claimed(path) as taken:
        assert not taken
    os.utime(path, (0, 0))
    with claimed(path) as taken:
        assert taken


def test_the_holder_touches_its_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "TOUCH_SECONDS", 0.01)
    path = tmp_path / "a.lock"
    with claimed(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), claimed(tmp_path / "file" / "a"):
        pass


def _race(folder: Path, number: int) -> None:
    for turn in range(20):
        with claimed(folder / f"{turn}.lock") as mine:
            if mine:
                (folder / f"{turn}.{number}").touch()
                time.sleep(0.05)


def test_of_several_processes_after_a_stale_claim_one_gets_it(tmp_path: Path) -> None:
    pid = gone_process()
    for turn in range(20):
        holder = {"host": socket.gethostname(), "pid": pid}
        (tmp_path / f"{turn}.lock").write_text(json.dumps(holder))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_race, args=(tmp_path, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert all(worker.exitcode == 0 for worker in workers)
    assert all(list(tmp_path.glob(f"{turn}.[0-9]")) for turn in range(20))
    assert not list(tmp_path.glob("*.lock*"))


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs Linux's /proc")
def test_a_process_that_nobody_has_reaped_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert claims.process_exists(child.pid)
    child.kill()
    end = time.monotonic() + 30
    while claims.process_exists(child.pid):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(child.pid, 0)  # its number is still taken
    child.communicate()
