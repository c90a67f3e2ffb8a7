"""What the GPU benchmark shares: timing on a device, time limits, and the table that it writes."""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch


class OutOfTime(BaseException):
    """A section has used its time; not an Exception, so that no case takes it for its own."""


class Timing(NamedTuple):
    """Median seconds of a call, the difference between the slowest and the fastest block, and the
    highest memory in GiB; None on the CPU."""

    seconds: float
    spread: float
    peak_gib: float | None


def measure(
    call: Callable[[], object],
    device: torch.device,
    *,
    warm_up: int = 3,
    blocks: int = 3,
    calls: int = 5,
) -> Timing:
    """Time blocks of calls by the device's events; on the CPU, a single call. Memory counts
    everything that is alive."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return Timing(time.perf_counter() - begin, 0.0, None)
    for _ in range(warm_up):
        call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = [_block(call, calls) for _ in range(blocks)]
    peak = torch.cuda.max_memory_allocated() / 2**30
    return Timing(statistics.median(found), max(found) - min(found), peak)


def _block(call: Callable[[], object], calls: int) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(calls):
        call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def free() -> None:
    """Give back what former cases left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime within it after so many seconds."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Table:
    """Rows of numbers, written to `gpu.md` and `gpu.json` of a folder whenever one is added."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device, self.rows = folder, device, []
        self.machine = machine(device)
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        case: str,
        side: str,
        timing: Timing | None = None,
        *,
        rate: float | None = None,
        unit: str = "",
        note: str = "",
    ) -> None:
        """One measurement.

        Args:
            side: whose it is.
            rate: how much of `unit` a second.
        """
        row: dict[str, Any] = {"case": case, "side": side, "note": note}
        if timing is not None:
            row |= {
                "ms": 1e3 * timing.seconds,
                "spread_ms": 1e3 * timing.spread,
                "peak_gib": timing.peak_gib,
            }
        if rate is not None:
            row |= {"rate": rate, "unit": unit}
        self.rows.append(row)
        print(_line(row), flush=True)
        self.write()

    @contextlib.contextmanager
    def case(self, case: str, side: str) -> Iterator[None]:
        """A failure within it becomes a row."""
        free()
        try:
            yield
        except torch.OutOfMemoryError:
            self.add(case, side, note="out of memory")
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.add(case, side, note=f"failed: {type(error).__name__}: {lines[0][:160]}")
        free()

    def write(self) -> None:
        content = {"machine": self.machine, "rows": self.rows}
        (self.folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(self.markdown())

    def markdown(self) -> str:
        """The whole table."""
        head = ", ".join(f"{name} {value}" for name, value in self.machine.items())
        lines = [head, "", HEADER, "|---|---|---:|---:|---:|---|", *map(_line, self.rows)]
        return "\n".join(lines) + "\n"


HEADER = "| case | side | ms | rate | peak GiB | note |"


def _line(row: dict[str, Any]) -> str:
    ms = f"{row['ms']:.2f}" if "ms" in row else ""
    rate = f"{row['rate']:,.4g} {row['unit']}" if "rate" in row else ""
    peak = row.get("peak_gib")
    gib = "" if peak is None else f"{peak:.2f}"
    return f"| {row['case']} | {row['side']} | {ms} | {rate} | {gib} | {row['note']} |"


def machine(device: torch.device) -> dict[str, str]:
    """The card, its driver, and the versions of what runs on it."""
    found = {"date": time.strftime("%Y-%m-%d"), "card": "CPU"}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError):
            said = subprocess.run(query, capture_output=True, text=True, check=False)
            found["driver"] = said.stdout.strip()
    for name in ("torch", "open_clip_torch", "timm", "transformers", "triton", "lightly"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
