"""Euclidean k-means over rows that lie on several ranks' share of one matrix, in blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distributed.collectives import broadcast_, gather_ragged, sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size

BLOCK_ENTRIES = 2**22
"""Entries of the distances that are held at a time."""
SPREAD_CLUSTERS = 1024
"""Up to this many clusters start from points drawn far apart (k-means++), a pass over the rows for
each; more from random ones."""


class Clusters(NamedTuple):
    """Centroids `[K, D]`, the cluster of each row `[N]`, and the sum of squared distances to the
    centroids."""

    centroids: Tensor
    labels: Tensor
    inertia: float


@torch.no_grad()
def kmeans(
    features: Float[Tensor, "N D"], num_clusters: int, *, iterations: int, tries: int, seed: int
) -> Clusters:
    """The best of several runs of Lloyd's iteration; the result is the same on every rank.

    Every rank holds all rows, assigns its share of them, and adds up its share of the sums.
    Centroids are means and not normalised. A cluster that loses all its rows takes half of the
    largest one.

    Raises:
        ValueError: there are fewer rows than clusters.
    """
    if len(features) < num_clusters:
        raise ValueError(
            f"{num_clusters} clusters need at least as many rows; there are {len(features)}"
        )
    generator = torch.Generator().manual_seed(seed)
    best: Clusters | None = None
    for _ in range(tries):
        centroids = _spread_points(features, num_clusters, generator)
        for _ in range(iterations):
            labels, _ = _assign(features, centroids)
            centroids = _means(features, labels, num_clusters, generator)
        labels, inertia = _assign(features, centroids)
        if best is None or inertia < best.inertia:
            best = Clusters(centroids, labels, inertia)
    assert best is not None
    # Sums may be added up in another order on another device: one rank's word counts.
    return best._replace(
        centroids=broadcast_(best.centroids.contiguous()),
        labels=broadcast_(best.labels.contiguous()),
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


def _own_share(num_rows: int) -> slice:
    per_rank = -(-num_rows // world_size())
    return slice(min(rank() * per_rank, num_rows), min((rank() + 1) * per_rank, num_rows))


def _assign(features: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """The nearest centroid of every row and the sum of squared distances to them."""
    share = features[_own_share(len(features))]
    labels = torch.empty(len(share), dtype=torch.int64, device=features.device)
    total = torch.zeros((), dtype=torch.float64, device=features.device)
    lengths = centroids.square().sum(dim=1)
    height = max(1, BLOCK_ENTRIES // len(centroids))
    for top in range(0, len(share), height):
        block = share[top : top + height]
        # |x|^2 does not change which centroid is nearest.
        nearest = torch.addmm(lengths, block, centroids.T, alpha=-2).argmin(dim=1)
        labels[top : top + height] = nearest
        total += (block - centroids[nearest]).square().sum()
    return gather_ragged(labels), float(sum_without_grad(total))


def _means(
    features: Tensor, labels: Tensor, num_clusters: int, generator: torch.Generator
) -> Tensor:
    share = _own_share(len(features))
    sums = torch.zeros(num_clusters, features.shape[1], dtype=torch.float64, device=features.device)
    sums = sum_without_grad(sums.index_add_(0, labels[share], features[share].double()))
    counts = torch.bincount(labels, minlength=num_clusters)
    centroids = (sums / counts.clamp_min(1)[:, None]).to(features.dtype)
    for empty in (counts == 0).nonzero().flatten().tolist():
        # Two copies of the largest cluster's centroid, moved apart by a little, share its rows at
        # the next assignment.
        largest = int(counts.argmax())
        step = (
            1e-3
            * centroids[largest].abs().mean()
            * torch.randn(features.shape[1], generator=generator).to(centroids)
        )
        centroids[empty] = centroids[largest] + step
        centroids[largest] -= step
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return centroids


def _spread_points(features: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Distinct rows to start from, each drawn in proportion to its squared distance from those
    before it where that is affordable."""
    if num_clusters > SPREAD_CLUSTERS:
        return features[
            torch.randperm(len(features), generator=generator)[:num_clusters].to(features.device)
        ].clone()
    chosen = [int(torch.randint(len(features), (), generator=generator))]
    nearest = (features - features[chosen[0]]).square().sum(dim=1)
    for _ in range(num_clusters - 1):
        reach = nearest.double().cumsum(dim=0)
        draw = torch.rand((), generator=generator, dtype=torch.float64).to(reach) * reach[-1]
        chosen.append(min(int(torch.searchsorted(reach, draw, right=True)), len(features) - 1))
        nearest = torch.minimum(nearest, (features - features[chosen[-1]]).square().sum(dim=1))
    return features[chosen].clone()
