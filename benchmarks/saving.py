"""How long a checkpoint holds training up: written in line, and in the background.

    OMP_NUM_THREADS=1 python benchmarks/saving.py [--mib 288] [--saves 5] [--folder FOLDER]

The state has weights, averages and both moments of AdamW in 48 tensors each. A save in the
background returns when the state is copied; the first one also takes the memory for the copy.
Prints seconds and their range, and how long the file takes behind the training. The exit code is 1
where a later save in the background holds training up for more than half as long as one in line.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.saving import Saver

TENSORS, MOST = 48, 0.5


def checkpoint(step: int, mib: int) -> Checkpoint:
    """A state of so many MiB: weights, averages and two moments."""
    count = mib * 2**18 // (4 * TENSORS)

    def tensors() -> dict[str, torch.Tensor]:
        return {str(number): torch.rand(count) for number in range(TENSORS)}

    first, second = tensors(), tensors()
    return Checkpoint(
        step=step,
        recipe="{}",
        world_size=1,
        global_batch=1,
        towers={"image": tensors()},
        ema=tensors(),
        optimizer={
            name: {"exp_avg": first[name], "exp_avg_sq": second[name], "step": step}
            for name in first
        },
    )


def held_up(saver: Saver, state: Checkpoint) -> tuple[float, float]:
    """Seconds until `save` returns, and until the file is written after that."""
    start = time.perf_counter()
    saver.save(state, is_best=False, before_cooldown=False)
    returned = time.perf_counter()
    saver.wait()
    return returned - start, time.perf_counter() - returned


def described(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=288)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's own")
    given = parser.parse_args()
    state = checkpoint(1, given.mib)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        inline = Saver(Path(folder) / "inline")
        background = Saver(Path(folder) / "background", in_background=True)
        first, written = held_up(background, state)
        lines, later, behind = list[float](), list[float](), [written]
        for _ in range(given.saves):
            lines.append(held_up(inline, state)[0])
            copied, written = held_up(background, state)
            later.append(copied)
            behind.append(written)
    print(f"{given.mib} MiB, {given.saves} saves of each kind in turns, on {Path(folder).parent}:")
    print(f"  in line: {described(lines)}")
    print(f"  in the background: first {first:.2f} s, later {described(later)}")
    print(f"  written behind the training: {described(behind)}")
    return 0 if statistics.median(later) <= MOST * statistics.median(lines) else 1


if __name__ == "__main__":
    raise SystemExit(main())
