"""Search 1,000,000 x 384 vectors in a `.npy` file by 1,000 queries, as `vlkd search` and suite
`search` do: time and memory beyond the file's own pages.

    python benchmarks/search.py [--rows 1000000] [--queries 1000] [--threads 1]

Exits with 1 where the process holds more than 2.5 GB at its peak, the mapped file included.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from processor import processor

from vlkd_cli.engine.search import nearest

WIDTH, MOST_GB, BLOCK = 384, 2.5, 50_000


def write_rows(file: Path, count: int) -> None:
    rows = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(count, WIDTH))
    for start in range(0, count, BLOCK):
        block = np.random.RandomState(start).randn(min(BLOCK, count - start), WIDTH)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        rows[start : start + len(block)] = block
    rows.flush()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(processor())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        write_rows(file, given.rows)
        queries = torch.nn.functional.normalize(
            torch.randn(given.queries, WIDTH, generator=torch.Generator().manual_seed(0))
        )
        started = time.process_time()
        scores, _ = nearest(np.load(file, mmap_mode="r"), queries, 10)
        seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{given.rows:,} x {WIDTH} by {given.queries:,}: {seconds:.1f} s, peak {peak:.2f} GiB")
    assert scores.shape == (given.queries, 10)
    return int(peak * 2**30 > MOST_GB * 1e9)


if __name__ == "__main__":
    sys.exit(main())
