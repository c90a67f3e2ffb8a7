"""The 20 nearest of 50,000 x 512 training rows, against faiss's flat index and scikit-learn's brute
force.

    python benchmarks/knn.py [--rows 50000] [--queries 2000] [--k 20] [--rounds 2] [--threads 1]

Exits with 1 where vlkd is slower than either, or finds other neighbors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import faiss
import numpy as np
import torch
from forked import compare, report
from processor import processor
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

from vlkd_cli.numerics.topk import top_k


def rows_of(count: int, seed: int) -> Tensor:
    """Unit-length rows around 100 centers."""
    centers = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 100, (count,), generator=generator)
    return torch.nn.functional.normalize(
        centers[label] + 1.5 * torch.randn(count, 512, generator=generator)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    print(processor())
    train, queries, k = rows_of(given.rows, 1), rows_of(given.queries, 2), given.k
    index = faiss.IndexFlatIP(512)
    index.add(train.numpy())
    brute = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(train.numpy())

    def with_faiss() -> Callable[[], object]:
        return lambda: index.search(queries.numpy(), k)

    def with_sklearn() -> Callable[[], object]:
        return lambda: brute.kneighbors(queries.numpy())

    def with_vlkd() -> Callable[[], object]:
        return lambda: top_k(queries, train, k)

    with threadpool_limits(given.threads):
        similarity, _ = index.search(queries[:200].numpy(), k)
        differ = float(np.abs(top_k(queries[:200], train, k)[0].numpy() - similarity).max())
        what = f"k-NN {given.queries} of {given.rows} x 512, k {k}"
        fine = report(
            f"{what}, against faiss", *compare(with_vlkd, with_faiss, given.rounds), faster=1
        )
        fine &= report(
            f"{what}, against scikit-learn",
            *compare(with_vlkd, with_sklearn, given.rounds),
            faster=1,
        )
    print(f"largest difference of a similarity from faiss: {differ:.1e}")
    return 0 if fine and differ < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
