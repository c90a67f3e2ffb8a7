from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkd_cli.numerics.kmeans import class_means, kmeans


def cloud(rows: int = 600, width: int = 7, dtype: torch.dtype = torch.float32) -> Tensor:
    """Points without clusters, so that rows keep changing theirs for many iterations."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_end_at_their_nearest_centroid_and_centroids_at_the_mean_of_their_rows(
    dtype: torch.dtype,
) -> None:
    rows = cloud(dtype=dtype)
    found = kmeans(rows, 20, num_iterations=200, seed=3)
    assert 10 < found.num_iterations < 200
    squares = torch.cdist(rows.double(), found.centroids.double()).square()
    assert torch.equal(found.labels, squares.argmin(dim=1))
    means = class_means(rows.double(), found.labels, 20)
    torch.testing.assert_close(found.centroids.double(), means, rtol=0, atol=1e-6)
    assert found.inertia == pytest.approx(float(squares.amin(dim=1).sum()), rel=1e-6)


@pytest.mark.parametrize("num_iterations", [1, 2, 5])
def test_rows_are_assigned_to_the_last_centroids_when_iterations_run_out(
    num_iterations: int,
) -> None:
    rows = cloud()
    found = kmeans(rows, 20, num_iterations=num_iterations, seed=3)
    squares = torch.cdist(rows.double(), found.centroids.double()).square()
    assert found.num_iterations == num_iterations
    assert torch.equal(found.labels, squares.argmin(dim=1))
    assert found.inertia == pytest.approx(float(squares.amin(dim=1).sum()), rel=1e-6)


def test_every_iteration_lowers_the_inertia_and_a_tolerance_stops_early() -> None:
    rows = cloud()
    inertia = [kmeans(rows, 20, num_iterations=n, seed=3).inertia for n in range(1, 8)]
    assert inertia == sorted(inertia, reverse=True)
    early = kmeans(rows, 20, tolerance=0.02, seed=3)
    assert early.num_iterations < kmeans(rows, 20, seed=3).num_iterations


def test_the_restart_with_the_least_inertia_wins() -> None:
    rows = cloud()
    for seed in range(3):
        one, several = (
            kmeans(rows, 20, num_iterations=3, num_restarts=restarts, seed=seed).inertia
            for restarts in (1, 8)
        )
        assert several <= one
    assert several < one


def test_candidates_for_the_starts_lower_the_inertia() -> None:
    rows = cloud(3000, 3)

    def mean_inertia(num_candidates: int) -> float:
        found = [
            kmeans(rows, 40, num_iterations=1, num_candidates=num_candidates, seed=seed).inertia
            for seed in range(6)
        ]
        return sum(found) / len(found)

    assert mean_inertia(5) < 0.97 * mean_inertia(1)


def test_empty_clusters_take_half_of_the_largest_one() -> None:
    noise = torch.randn(21, 2, generator=torch.Generator().manual_seed(0))
    points = torch.cat([torch.zeros(20, 2), torch.ones(1, 2)]) + 1e-3 * noise
    found = kmeans(points, 5, num_iterations=10)
    assert found.labels.bincount(minlength=5).min() > 0


def test_equal_rows_and_a_single_cluster_are_clustered() -> None:
    found = kmeans(torch.ones(6, 3), 2, num_iterations=5)
    assert found.inertia == pytest.approx(0, abs=1e-3)
    one = kmeans(cloud(), 1)
    torch.testing.assert_close(one.centroids[0], cloud().mean(dim=0))


def test_fewer_rows_than_clusters_are_an_error() -> None:
    with pytest.raises(ValueError, match="4 clusters need at least as many rows; there are 3"):
        kmeans(torch.eye(3), 4)
