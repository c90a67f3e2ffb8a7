"""CPU time, wall time and peak memory of a computation, each in a process of its own, forked so
that nothing is imported twice."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Seconds of CPU and wall time, and the memory in MiB that a computation took at its height
    beyond its inputs."""

    cpu: float
    wall: float
    peak_mib: float


def _kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def _map_code() -> None:
    """Map every page of the libraries' code. A fork starts with none of them, so code that is run
    for the first time would count as memory of the computation: 20 MiB and more of torch's."""
    populate_read = 22  # MADV_POPULATE_READ, Linux 5.14
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, inode, *_ = line.split()
        if rights.startswith("r") and inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), populate_read)


def _return_freed_blocks() -> None:
    """Give large blocks back to the system as soon as they are freed. The allocator otherwise holds
    back what may be used again, as much as was freed before, which is not the computation's."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD, malloc.h
    ctypes.CDLL(None).mallopt(mmap_threshold, 1 << 16)


def cost(prepare: Callable[[], Callable[[], object]]) -> Cost:
    """Call `prepare` for the inputs, and measure what it returns: time in one process, and memory
    in another one whose allocator returns what is freed.

    Raises:
        RuntimeError: a process failed; its traceback is on stderr.
    """
    return _in_a_fork(prepare)._replace(peak_mib=_peak_mib(prepare))


def _peak_mib(prepare: Callable[[], Callable[[], object]]) -> float:
    def prepared() -> Callable[[], object]:
        _return_freed_blocks()
        return prepare()

    return _in_a_fork(prepared).peak_mib


def _in_a_fork(prepare: Callable[[], Callable[[], object]]) -> Cost:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work = prepare()
            gc.collect()
            _map_code()
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            before, cpu, wall = _kib("VmRSS"), time.process_time(), time.perf_counter()
            work()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            os.write(writing, json.dumps([cpu, wall, (_kib("VmHWM") - before) / 1024]).encode())
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not answer:
        raise RuntimeError("the measured process failed")
    return Cost(*json.loads(answer))


def vlkd(*words: str, folder: Path) -> None:
    """Run a vlkd command in a folder, in a fork, so that libraries are imported once.

    Raises:
        SystemExit: it failed.
    """
    import timm  # noqa: F401  imported for the forks
    import torch
    import transformers  # noqa: F401

    from vlkd_cli.app import main

    print("vlkd", shlex.join(words), file=sys.stderr, flush=True)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(folder)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            torch.set_num_threads(1)
            main(list(words))
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"vlkd {shlex.join(words)} failed.")


def compare(
    ours: Callable[[], Callable[[], object]], peer: Callable[[], Callable[[], object]], rounds: int
) -> tuple[Cost, Cost]:
    """Median times of both, measured in turns, and their memory."""
    runs = [(_in_a_fork(ours), _in_a_fork(peer)) for _ in range(rounds)]
    medians = [
        Cost(*(statistics.median(values) for values in zip(*side, strict=True)))
        for side in zip(*runs, strict=True)
    ]
    own, other = (
        median._replace(peak_mib=_peak_mib(prepare))
        for median, prepare in zip(medians, (ours, peer), strict=True)
    )
    return own, other


def report(
    what: str, ours: Cost, peer: Cost, *, faster: float | None = None, smaller: float | None = None
) -> bool:
    """Print both costs and their ratios; whether the floors hold."""
    speed, size = peer.cpu / ours.cpu, peer.peak_mib / max(ours.peak_mib, 0.1)
    wanted = [
        f"{name} {floor:g}"
        for name, floor in (("time", faster), ("memory", smaller))
        if floor is not None
    ]
    print(
        f"{what}: vlkd {ours.cpu:.2f} s CPU ({ours.wall:.2f} s wall), {ours.peak_mib:.0f} MiB; peer"
        f" {peer.cpu:.2f} s ({peer.wall:.2f} s), {peer.peak_mib:.0f} MiB; ratio time {speed:.2f},"
        f" memory {size:.1f}" + (f" (floors: {', '.join(wanted)})" if wanted else "")
    )
    return (faster is None or speed >= faster) and (smaller is None or size >= smaller)
