"""Euclidean k-means on rows that every rank holds and that the ranks share the work on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distributed.collectives import broadcast_, gather_ragged, sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size

BLOCK_ROWS = 4096
BLOCK_ENTRIES = 2**22
"""Entries of the distances, and of rows in float64, that are held at a time."""
SPREAD_CLUSTERS = 1024
"""Up to this many clusters start from rows far apart (k-means++), which takes a pass for each;
more start from random rows."""
SAMPLE_PER_CLUSTER = 32
"""Rows for each cluster among which k-means++ looks for its starts."""


class Clusters(NamedTuple):
    """Centroids `[K, D]`, the cluster of each row `[N]` int64, the sum of squared distances to the
    centroids, and how many iterations the best restart took."""

    centroids: Tensor
    labels: Tensor
    inertia: float
    num_iterations: int


@torch.no_grad()
def kmeans(
    features: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    num_iterations: int = 100,
    num_restarts: int = 1,
    num_candidates: int = 1,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Clusters:
    """The best of several runs of Lloyd's iteration; the same result on every rank.

    Every rank holds all rows, assigns its part of them, and adds up its part of the sums. Centroids
    are means and not normalized. A cluster that loses all its rows takes half of the largest one.

    Args:
        features: float32 or float64.
        num_clusters: K.
        num_iterations: at most this many for each restart; fewer when no row changes its cluster.
        num_restarts: independent starts, of which the one with the least inertia wins.
        num_candidates: rows that are sampled for each start, of which the one that leaves the least
            inertia is taken.
        tolerance: also stop when an iteration lowers the inertia by less than this fraction.
        seed: of the starts; the same seed gives the same clusters.

    Raises:
        ValueError: there are fewer rows than clusters.

    Source: Lloyd 1982; starts by k-means++, Arthur and Vassilvitskii, SODA 2007, on at most
    SAMPLE_PER_CLUSTER rows per cluster; rows that provably stay in their cluster are skipped by
    the bounds of Hamerly, SDM 2010, widened by what rounding can change.
    """
    if len(features) < num_clusters:
        raise ValueError(
            f"{num_clusters} clusters need at least as many rows; there are {len(features)}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = features[_own_part(len(features))]
    lengths = torch.linalg.vector_norm(rows, dim=1)
    best: Clusters | None = None
    for _ in range(num_restarts):
        assignment = _Assignment(rows, lengths, num_clusters)
        centroids = _spread_rows(features, num_clusters, num_candidates, generator)
        found = _lloyd(assignment, centroids, num_iterations, tolerance, generator)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    # Sums may be added up in another order on another device: rank 0's result counts.
    return best._replace(
        centroids=broadcast_(best.centroids.contiguous()),
        labels=broadcast_(gather_ragged(best.labels)),
    )


def class_means(
    features: Float[Tensor, "N D"], labels: Int[Tensor, "N"], num_classes: int
) -> Float[Tensor, "K D"]:
    """Mean of the rows of each class; zero where a class has no row."""
    sums = torch.zeros(
        num_classes, features.shape[1], dtype=features.dtype, device=features.device
    ).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=num_classes)
    return sums / counts.clamp_min(1)[:, None]


def _own_part(num_rows: int) -> slice:
    per_rank = -(-num_rows // world_size())
    return slice(min(rank() * per_rank, num_rows), min((rank() + 1) * per_rank, num_rows))


def _lloyd(
    assignment: _Assignment,
    centroids: Tensor,
    num_iterations: int,
    tolerance: float,
    generator: torch.Generator,
) -> Clusters:
    """One restart; its labels are those of this rank's rows."""
    before, step = math.inf, 0
    while step < num_iterations:
        step += 1
        moved = assignment.update(centroids)
        sums, counts = assignment.totals()
        centroids, was_split = _means(sums, counts, centroids.dtype, generator)
        inertia = assignment.inertia(sums, counts, centroids) if tolerance else 0.0
        settled = moved == 0 or (tolerance > 0 and before - inertia <= tolerance * inertia)
        before = inertia
        if settled and not was_split:
            break
    assignment.update(centroids)
    inertia = assignment.inertia(*assignment.totals(), centroids)
    return Clusters(centroids, assignment.labels, inertia, step)


class _Assignment:
    """The nearest centroid of each of this rank's rows, and the sums of the rows of each cluster.

    Each row has an upper bound of the distance to its own centroid and a lower one of the distance
    to any other. Both are carried along while centroids move, and a row is compared with all
    centroids again only when they overlap.
    """

    def __init__(self, rows: Tensor, lengths: Tensor, num_clusters: int) -> None:
        self.rows, self.lengths = rows, lengths
        width = rows.shape[1]
        # Of a sum of `width` products, relative to the product of the lengths.
        self.rounding = (width + 8) * torch.finfo(rows.dtype).eps
        self.labels = torch.full((len(rows),), -1, dtype=torch.int64, device=rows.device)
        self.upper = torch.full_like(lengths, math.inf)
        self.lower = torch.zeros_like(lengths)
        self.centroids: Tensor | None = None
        self.sums = torch.zeros(num_clusters, width, dtype=torch.float64, device=rows.device)
        self.counts = torch.zeros(num_clusters, dtype=torch.int64, device=rows.device)
        self.squares = lengths.double().square().sum()

    def update(self, centroids: Tensor) -> int:
        """Assign every row to its nearest centroid; how many rows of all ranks changed theirs."""
        if self.centroids is not None:
            drift = (centroids - self.centroids).norm(dim=1) * (1 + self.rounding)
            self.upper.add_(drift[self.labels]).mul_(1 + self.rounding)
            self.lower.sub_(drift.max()).mul_(1 - self.rounding)
        self.centroids = centroids
        stale = (self.upper >= self.lower).nonzero().flatten()
        height = max(1, min(BLOCK_ROWS, BLOCK_ENTRIES // len(centroids)))
        squares = centroids.square().sum(dim=1)
        longest = squares.max().sqrt()
        moved = torch.zeros((), dtype=torch.int64, device=stale.device)
        every = len(stale) == len(self.rows)
        for block in stale.split(height):
            # A slice is read in place.
            rows = self.rows[block[0] : block[-1] + 1] if every else self.rows[block]
            # |x|^2 does not change which centroid is nearest.
            scores = torch.addmm(squares, rows, centroids.T, alpha=-2)
            score, nearest = scores.min(dim=1)
            other = scores.scatter_(1, nearest[:, None], math.inf).amin(dim=1)
            lengths = self.lengths[block]
            error = self.rounding * (lengths + longest).square()
            self.upper[block] = (score + lengths.square() + error).clamp_min(0).sqrt()
            self.lower[block] = (other + lengths.square() - error).clamp_min(0).sqrt()
            moved += self._move(block, rows, nearest)
        return int(sum_without_grad(moved))

    def _move(self, block: Tensor, rows: Tensor, nearest: Tensor) -> Tensor:
        before = self.labels[block]
        changed = (nearest != before).nonzero().flatten()
        self.labels[block] = nearest
        before, nearest, rows = before[changed], nearest[changed], rows[changed].double()
        self.sums.index_add_(0, nearest, rows)
        self.counts += torch.bincount(nearest, minlength=len(self.counts))
        left = (before >= 0).nonzero().flatten()
        self.sums.index_add_(0, before[left], rows[left], alpha=-1)
        self.counts -= torch.bincount(before[left], minlength=len(self.counts))
        return torch.tensor(len(changed), device=block.device)

    def totals(self) -> tuple[Tensor, Tensor]:
        """Sums `[K, D]` float64 and numbers of rows `[K]` of each cluster, over all ranks."""
        return sum_without_grad(self.sums), sum_without_grad(self.counts)

    def inertia(self, sums: Tensor, counts: Tensor, centroids: Tensor) -> float:
        """Sum over all rows of |x - c|^2 = |x|^2 - 2 x.c + |c|^2."""
        exact = centroids.double()
        around = (counts * exact.square().sum(dim=1)).sum() - 2 * (sums * exact).sum()
        return max(0.0, float(sum_without_grad(self.squares) + around))


def _means(
    sums: Tensor, counts: Tensor, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, bool]:
    """The means, and whether there was an empty cluster to fill."""
    centroids = (sums / counts.clamp_min(1)[:, None]).to(dtype)
    empty = (counts == 0).nonzero().flatten().tolist()
    counts = counts.clone()
    for cluster in empty:
        # Two copies of the largest cluster's centroid, moved apart by a little, share its rows at
        # the next assignment.
        largest = int(counts.argmax())
        step = (
            1e-3
            * centroids[largest].abs().mean()
            * torch.randn(sums.shape[1], generator=generator).to(centroids)
        )
        centroids[cluster] = centroids[largest] + step
        centroids[largest] -= step
        counts[cluster] = counts[largest] // 2
        counts[largest] -= counts[cluster]
    return centroids, bool(empty)


def _spread_rows(
    features: Tensor, num_clusters: int, num_candidates: int, generator: torch.Generator
) -> Tensor:
    """Distinct rows to start from, each sampled in proportion to its squared distance from those
    before it where that is affordable."""
    if num_clusters > SPREAD_CLUSTERS:
        return features[
            torch.randperm(len(features), generator=generator)[:num_clusters].to(features.device)
        ].clone()
    if len(features) > SAMPLE_PER_CLUSTER * num_clusters:
        order = torch.randperm(len(features), generator=generator)
        features = features[order[: SAMPLE_PER_CLUSTER * num_clusters].to(features.device)]
    squares = features.square().sum(dim=1)
    first = torch.randint(len(features), (1,), generator=generator).to(features.device)
    chosen = [first]
    nearest = _square_distances(features, squares, first)[0]
    for _ in range(num_clusters - 1):
        reach = nearest.double().cumsum(dim=0)
        points = torch.rand(num_candidates, generator=generator, dtype=torch.float64)
        candidates = torch.searchsorted(reach, points.to(reach) * reach[-1], right=True)
        candidates = candidates.clamp_max(len(features) - 1)
        closer = torch.minimum(nearest, _square_distances(features, squares, candidates))
        best = int(closer.sum(dim=1).argmin())
        chosen.append(candidates[best : best + 1])
        nearest = closer[best]
    return features[torch.cat(chosen)].clone()


def _square_distances(features: Tensor, squares: Tensor, rows: Tensor) -> Tensor:
    """`[n, N]` from each of n rows to all; exactly 0 to the row itself, so that it is not sampled
    again."""
    distances = squares + squares[rows, None] - 2 * (features[rows] @ features.T)
    return distances.clamp_min_(0).scatter_(1, rows[:, None], 0)
