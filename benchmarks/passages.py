"""Exact top-10 of 1 M x 384 rows for 1000 queries, rows read from disk in pieces, against faiss's
flat index: time and peak memory.

    python benchmarks/passages.py [--rows 1000000] [--queries 1000] [--k 10] [--threads 1]

Both sides hold the same float32 rows: faiss in its index, vlkd as a memory-mapped file that it
reads chunk by chunk, as the suite passage_retrieval does. Each runs in a process of its own, one
after the other. Exits with 1 where vlkd takes more CPU time than faiss, needs more
than 4 GiB, or finds other neighbors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from processor import processor

WIDTH = 384
CHUNK = 16384


def write_rows(path: Path, rows: int) -> None:
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    random = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        block = random.standard_normal((min(CHUNK, rows - start), WIDTH), dtype=np.float32)
        table[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    table.flush()


def queries_of(count: int) -> np.ndarray:
    block = np.random.default_rng(1).standard_normal((count, WIDTH), dtype=np.float32)
    return block / np.linalg.norm(block, axis=1, keepdims=True)


def search_faiss(path: Path, queries: np.ndarray, k: int, threads: int, answer: Connection) -> None:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(WIDTH)
    table = np.load(path, mmap_mode="r")
    for start in range(0, len(table), CHUNK):
        index.add(np.ascontiguousarray(table[start : start + CHUNK]))
    index.search(queries[:8], k)
    wall, cpu = time.perf_counter(), time.process_time()
    _, found = index.search(queries, k)
    answer.send((time.perf_counter() - wall, time.process_time() - cpu, peak_gib(), found))


def search_vlkd(path: Path, queries: np.ndarray, k: int, threads: int, answer: Connection) -> None:
    import torch

    from vlkd_cli.numerics.topk import TopK

    torch.set_num_threads(threads)
    table = np.load(path, mmap_mode="r")
    wall, cpu = time.perf_counter(), time.process_time()
    best = TopK(torch.from_numpy(queries), k)
    for start in range(0, len(table), CHUNK):
        best.add(torch.from_numpy(np.array(table[start : start + CHUNK])))
    _, keys = best.result()
    answer.send((time.perf_counter() - wall, time.process_time() - cpu, peak_gib(), keys.numpy()))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    print(processor())
    queries = queries_of(given.queries)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, given.rows)
        for name, search in (("faiss", search_faiss), ("vlkd", search_vlkd)):
            ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(
                target=search, args=(path, queries, given.k, given.threads, theirs)
            )
            process.start()
            # A child that dies closes its end, once this one is closed too; then recv raises
            # instead of waiting.
            theirs.close()
            figures[name] = ours.recv()
            process.join()
    for name, (wall, cpu, memory, _) in figures.items():
        print(f"{name:6} {wall:7.2f} s wall {cpu:7.2f} s CPU {memory:6.2f} GiB at most")
    ratio = figures["vlkd"][1] / figures["faiss"][1]
    same = float((figures["vlkd"][3] == figures["faiss"][3]).mean())
    print(f"CPU time, vlkd / faiss: {ratio:.2f}; same neighbor at the same place: {same:.4%}")
    return int(ratio > 1 or figures["vlkd"][2] > 4 or same < 0.999)


if __name__ == "__main__":
    sys.exit(main())
