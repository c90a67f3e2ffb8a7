"""K-means of 50,000 x 512 rows into 100 clusters, 20 iterations, against faiss and scikit-learn:
time and inertia.

    python benchmarks/kmeans.py [--rows 50000] [--restarts 1] [--rounds 2] [--noise 1.5]
        [--threads 1]

Exits with 1 where vlkd takes longer than faiss or ends with more inertia (sum of squared distances,
mean over the seeds of the rounds).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import faiss
import torch
from processor import processor
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from vlkd_cli.numerics.kmeans import kmeans

CLUSTERS, ITERATIONS = 100, 20


def rows_of(count: int, noise: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLUSTERS, 512, generator=generator)
    label = torch.randint(0, CLUSTERS, (count,), generator=generator)
    return torch.nn.functional.normalize(
        centers[label] + noise * torch.randn(count, 512, generator=generator)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--restarts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--noise", type=float, default=1.5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    faiss.omp_set_num_threads(given.threads)
    print(processor())
    rows = rows_of(given.rows, given.noise)

    def with_vlkd(seed: int) -> float:
        return kmeans(
            rows,
            CLUSTERS,
            num_iterations=ITERATIONS,
            num_restarts=given.restarts,
            num_candidates=6,
            seed=seed,
        ).inertia

    def with_faiss(seed: int) -> float:
        clusters = faiss.Kmeans(
            512,
            CLUSTERS,
            niter=ITERATIONS,
            nredo=given.restarts,
            seed=seed,
            max_points_per_centroid=10**9,
        )
        clusters.train(rows.numpy())
        return float(clusters.index.search(rows.numpy(), 1)[0].sum())

    def with_sklearn(seed: int) -> float:
        return float(
            KMeans(CLUSTERS, n_init=given.restarts, max_iter=ITERATIONS, tol=0, random_state=seed)
            .fit(rows.numpy())
            .inertia_
        )

    sides: dict[str, Callable[[int], float]] = {
        "vlkd": with_vlkd,
        "faiss": with_faiss,
        "scikit-learn": with_sklearn,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    inertia: dict[str, list[float]] = {name: [] for name in sides}
    with threadpool_limits(given.threads):
        for seed in range(given.rounds):
            for name, work in sides.items():
                start = time.process_time()
                inertia[name].append(work(seed))
                seconds[name].append(time.process_time() - start)
    cost = {name: statistics.median(values) for name, values in seconds.items()}
    score = {name: statistics.mean(values) for name, values in inertia.items()}
    for name in sides:
        print(f"k-means, {name}: {cost[name]:.2f} s CPU, inertia {score[name]:.1f}")
    print(
        f"ratio time: faiss {cost['faiss'] / cost['vlkd']:.2f} (floor 1), scikit-learn"
        f" {cost['scikit-learn'] / cost['vlkd']:.2f}"
    )
    return 0 if cost["vlkd"] <= cost["faiss"] and score["vlkd"] <= score["faiss"] else 1


if __name__ == "__main__":
    sys.exit(main())
