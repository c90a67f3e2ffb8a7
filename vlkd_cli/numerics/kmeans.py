"""K-means on large tables of features: blocked, with restarts, at the speed of one matrix product
per iteration."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ROWS = 4096
SAMPLE = 128


class Clusters(NamedTuple):
    """`centres` `[k, D]`, `assignment` `[N]` int64, and the sum of squared distances to the nearest
    centre."""

    centres: Tensor
    assignment: Tensor
    inertia: float
    iterations: int


def kmeans(
    features: Tensor,
    k: int,
    *,
    iterations: int = 100,
    restarts: int = 1,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Clusters:
    """Lloyd's algorithm from k-means++ starts on a subsample; the restart with the least inertia
    wins.

    Args:
        features: `[N, D]` float32, N at least k.
        k: number of clusters.
        iterations: at most so many per restart.
        restarts: independent starts.
        tolerance: stop when the inertia falls by less than this share between two iterations.
        seed: of the starts; the same seed gives the same clusters.

    Source: Lloyd 1982; Arthur and Vassilvitskii, k-means++, SODA 2007; here on at most
    SAMPLE points per cluster and with 2 + log(k) candidates a step, of which the best is taken, as
    scikit-learn does.
    """
    if len(features) < k:
        raise ValueError(f"{k} clusters need at least {k} rows, not {len(features)}")
    generator = torch.Generator().manual_seed(seed)
    squares = features.square().sum(1)
    best: Clusters | None = None
    for _ in range(restarts):
        found = _lloyd(features, squares, _starts(features, k, generator), iterations, tolerance)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def assign(features: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row and the squared distance less the row's own square: `[N]`
    int64 and `[N]` float32."""
    half = centres.square().sum(1) / 2
    nearest = torch.empty(len(features), dtype=torch.int64, device=features.device)
    distance = torch.empty(len(features), device=features.device)
    for start in range(0, len(features), BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, len(features)))
        score, index = torch.addmm(-half, features[block], centres.T).max(1)
        nearest[block], distance[block] = index, -2 * score
    return nearest, distance


def _lloyd(
    features: Tensor, squares: Tensor, centres: Tensor, iterations: int, tolerance: float
) -> Clusters:
    k = len(centres)
    total = squares.double().sum()
    former = torch.full((len(features),), -1, dtype=torch.int64, device=features.device)
    sums = torch.zeros_like(centres)
    inertia, step = float("inf"), 0
    for step in range(1, iterations + 1):
        nearest, distance = assign(features, centres)
        now = float(total + distance.double().sum())
        moved = (nearest != former).nonzero().flatten()
        if not len(moved) or inertia - now <= tolerance * now:
            break
        inertia = now
        counts = torch.bincount(nearest, minlength=k)
        if len(moved) * 3 < len(features) and step % 10:
            # Few rows change their cluster after the first iterations: correct the sums by those.
            # Rebuilt now and then against drift.
            rows = features[moved]
            sums.index_add_(0, nearest[moved], rows)
            sums.index_add_(0, former[moved], rows, alpha=-1)
        else:
            sums = torch.zeros_like(centres).index_add_(0, nearest, features)
        former = nearest
        centres = sums / counts.clamp(min=1).unsqueeze(1)
        for empty in (counts == 0).nonzero().flatten().tolist():
            # An empty cluster takes the row that is farthest from its centre.
            farthest = int((squares + distance).argmax())
            centres[empty] = features[farthest]
            distance[farthest] = -squares[farthest]
    nearest, distance = assign(features, centres)
    return Clusters(centres, nearest, float(total + distance.double().sum()), step)


def _starts(features: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """K-means++: each start is drawn with a probability that grows with its squared distance to the
    starts before."""
    sample = features
    if len(features) > SAMPLE * k:
        sample = features[
            torch.randperm(len(features), generator=generator)[: SAMPLE * k].to(features.device)
        ]
    candidates = 2 + int(math.log(k))
    chosen = [int(torch.randint(len(sample), (1,), generator=generator))]
    squares = sample.square().sum(1)
    distance = _distances(sample, squares, chosen)[0]
    while len(chosen) < k:
        weights = distance.double().clamp(min=0).cpu()
        if float(weights.sum()) == 0:  # fewer distinct rows than clusters
            weights = torch.ones_like(weights)
        point = torch.rand(candidates, generator=generator, dtype=torch.float64) * weights.sum()
        drawn = torch.searchsorted(weights.cumsum(0), point).clamp(max=len(sample) - 1).tolist()
        closer = torch.minimum(_distances(sample, squares, drawn), distance)
        better = int(closer.sum(1).argmin())
        chosen.append(drawn[better])
        distance = closer[better]
    return sample[torch.tensor(chosen, device=features.device)].clone()


def _distances(sample: Tensor, squares: Tensor, rows: list[int]) -> Tensor:
    """Squared distances of all rows to some of them, `[n, N]`."""
    picked = torch.tensor(rows, device=sample.device)
    return squares + squares[picked, None] - 2 * (sample[picked] @ sample.T)
