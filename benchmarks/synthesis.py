"""Synthesis without a neural network: BM25 mines and scores, so that the time is that of the index,
of the lists and of the files.

    python benchmarks/synthesis.py [--passages 100000] [--queries 2000]

Prints seconds of CPU time and the peak memory. Exits with 1 where the index, with its lists, takes
more than 1 KiB of memory a passage of 60 words.
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

from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.bm25 import BM25Index
from vlkd_cli.synthesis.run import synthesize

WORDS, LENGTH, MOST_BYTES = 50_000, 60, 1024


def write_texts(file: Path, count: int, length: int, seed: int) -> None:
    """Lines of words whose frequencies fall as those of a language do."""
    random = np.random.RandomState(seed)
    with file.open("w") as out:
        for _ in range(count):
            numbers = np.minimum(random.zipf(1.3, length), WORDS)
            out.write(" ".join(f"w{number}" for number in numbers) + "\n")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(processor())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_texts(folder / "corpus.txt", given.passages, LENGTH, 0)
        write_texts(folder / "queries.txt", given.queries, 8, 1)
        before, started = peak_bytes(), time.process_time()
        with (folder / "corpus.txt").open() as lines:
            index = BM25Index(lines)
        seconds, held = time.process_time() - started, peak_bytes() - before
        print(f"index of {given.passages:,} passages: {seconds:.1f} s, {held / 2**20:.0f} MiB")
        del index
        spec = SynthesisSpec.model_validate(
            {
                "data": {"reader": "passages", "path": name},
                "miners": ["bm25"],
                "scorers": [{"name": "bm25"}],
            }
        )
        started = time.process_time()
        found = synthesize(spec, Subject(None, None), folder / "out")
        seconds = time.process_time() - started
        print(
            f"{found.page['counts']['relations']:,} relations of {given.queries:,} queries:"
            f" {seconds:.1f} s, peak {peak_bytes() / 2**20:.0f} MiB"
        )
    return int(held > MOST_BYTES * given.passages)


if __name__ == "__main__":
    sys.exit(main())
