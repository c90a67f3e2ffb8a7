"""Memory of the loader over epochs and over the length of a csv table.

Writes tables of 1/100 and of all of `--rows` rows, opens each through the csv reader, and draws
`--epochs` episodes through worker
processes. Printed after each epoch: anonymous memory (what cannot be dropped and read again; shared
pages counted once) of this process and of all workers, and the mapped file pages next to it. Two
claims are checked, and the exit code reports:

- flat over epochs: the last epoch needs at most 5 % (or 8 MiB) more than the second;
- flat over rows: 100 times the rows need at most 16 MiB more per process.

    python benchmarks/loader_memory.py --rows 10_000_000 --epochs 20
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.csv import CSV
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.preprocessing import ImageInput

NUM_IMAGES = 256
MIB = 1 << 20


class Memory(NamedTuple):
    """MiB of this process and its children together."""

    anonymous: float
    mapped: float
    processes: int


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--episode", type=int, default=8_000, help="samples per epoch")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument(
        "--group",
        action="store_true",
        help="group rows by image when indexing, as the reader does by default",
    )
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VLKD_CACHE"] = str(Path(scratch, "cache"))
        _write_images(Path(scratch))
        curves = [
            _measure(Path(scratch), rows, options)
            for rows in (max(options.rows // 100, 1000), options.rows)
        ]
    small, large = curves
    growth = large[-1].anonymous - large[1].anonymous
    flat_epochs = growth <= max(0.05 * large[1].anonymous, 8)
    by_rows = (large[-1].anonymous - small[-1].anonymous) / large[-1].processes
    flat_rows = by_rows <= 16
    print(f"epoch 2 to {options.epochs}: {growth:+.1f} MiB ({'flat' if flat_epochs else 'GROWS'})")
    print(
        f"100 times the rows: {by_rows:+.1f} MiB per process ({'flat' if flat_rows else 'GROWS'})"
    )
    return 0 if flat_epochs and flat_rows else 1


def _measure(folder: Path, rows: int, options: argparse.Namespace) -> list[Memory]:
    table = _write_table(folder / f"table{rows}.tsv", rows)
    start = time.perf_counter()
    reader = CSV(path=str(table), group=options.group)
    views = {"image": ImageView(ImageInput(size_px=(64, 64))), "text": TextView(_tokens)}
    print(
        f"{rows:,} rows, {table.stat().st_size / MIB:,.0f} MiB, indexed in"
        f" {time.perf_counter() - start:.1f} s"
    )
    loader = Loader(
        reader,
        views,
        batch_size=100,
        seed=0,
        workers=options.workers,
        episode_samples=min(options.episode, len(reader)),
    )
    curve = []
    for epoch in range(options.epochs):
        for _ in loader.batches(epoch):
            pass
        curve.append(_memory())
        if epoch in (0, 1, options.epochs // 2, options.epochs - 1):
            anonymous, mapped, processes = curve[-1]
            print(
                f"  epoch {epoch + 1:3}: {anonymous:8.1f} MiB anonymous in {processes} processes,"
                f" {mapped:8.1f} MiB mapped"
            )
    loader.close()
    return curve


def _memory() -> Memory:
    anonymous = mapped = 0.0
    processes = [os.getpid(), *_children(os.getpid())]
    for process in processes:
        fields = {}
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":")
            fields[name] = int(value.split()[0]) / 1024
        anonymous += fields["Pss_Anon"]
        mapped += fields["Pss_File"]
    return Memory(anonymous, mapped, len(processes))


def _children(process: int) -> list[int]:
    own = [
        int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]
    return own + [grandchild for child in own for grandchild in _children(child)]


def _write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(
            folder / "images" / f"{number:03}.jpg"
        )


def _write_table(path: Path, rows: int) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        file.write("filepath\ttitle\n")
        for start in range(0, rows, 100_000):
            file.write(
                "".join(
                    f"images/{row % NUM_IMAGES:03}.jpg\ta caption with some words and the number"
                    f" {row} at its end\n"
                    for row in range(start, min(start + 100_000, rows))
                )
            )
    return path


def _tokens(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[hash(word) % 1000 for word in text.split()] for text in texts])
    }


if __name__ == "__main__":
    sys.exit(main())
