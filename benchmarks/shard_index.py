"""How fast tar shards are indexed, and what a sample takes in memory and on disk.

    python benchmarks/shard_index.py --shards 20 --samples 10000

Writes shards of three members a sample (jpg, txt, json) into a temporary folder, indexes them with
one process, and prints one row.
"""

from __future__ import annotations

import argparse
import os
import resource
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np


def write_shard(path: Path, first: int, samples: int) -> None:
    """A shard whose images are 2 KB of noise; reading headers does not depend on their size."""
    noise = np.random.default_rng(first).integers(0, 256, 2048, dtype=np.uint8).tobytes()
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + samples):
            for suffix, content in (("jpg", noise), ("txt", b"a caption"), ("json", b"{}")):
                entry = tarfile.TarInfo(f"{number:09}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=10_000, help="of each shard")
    parser.add_argument("--goal", type=int, default=400_000_000, help="samples to project to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VLKD_CACHE"] = f"{folder}/cache"
        from vlkd_cli.data.files import shard_index
        from vlkd_cli.data.files.shard_samples import ShardSamples
        from vlkd_cli.data.files.tar_members import Parts

        shard_index.CACHE_ABOVE_BYTES = 0
        paths = [f"{folder}/{shard:05}.tar" for shard in range(options.shards)]
        for shard, path in enumerate(paths):
            write_shard(Path(path), shard * options.samples, options.samples)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin = time.perf_counter()
        samples = ShardSamples(paths, Parts(("jpg",), ("txt",)))
        seconds = time.perf_counter() - begin
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        begin = time.perf_counter()
        ShardSamples(paths, Parts(("jpg",), ("txt",)))
        again = time.perf_counter() - begin
        arrays = samples.arrays
        size = sum(arrays[name].nbytes for name in arrays.sums()) / len(samples)
        hours = options.goal * seconds / len(samples) / 3600
        print(
            "| samples | samples/s | opened again | bytes a sample | peak while building |"
            f" {options.goal:,} samples |\n|---|---|---|---|---|---|\n"
            f"| {len(samples):,} | {len(samples) / seconds:,.0f} | {again:.2f} s | {size:.1f} |"
            f" {grown / len(samples):.0f} B a sample |"
            f" {size * options.goal / 1e9:.1f} GB, {hours:.1f} hours on one core |"
        )


if __name__ == "__main__":
    main()
