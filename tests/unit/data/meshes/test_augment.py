"""What each change of points does, and that it does nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlkd_cli.data.meshes.augment import PointsAugment
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.component import make

NOTHING: dict[str, Any] = {"scale": (1.0, 1.0), "shift": 0, "jitter": 0, "drop": 0}


@pytest.fixture
def points() -> np.ndarray:
    rows = np.random.default_rng(3).standard_normal((400, 6)).astype(np.float32)
    rows[:, 3:] /= np.linalg.norm(rows[:, 3:], axis=1, keepdims=True)
    return rows


def changed(points: np.ndarray, seed: int = 0, **keys: Any) -> np.ndarray:
    return PointsAugment(**{**NOTHING, **keys}).apply(points, np.random.default_rng(seed))


def test_without_changes_points_stay(points):
    assert np.array_equal(changed(points), points)


@pytest.mark.parametrize("rotate", ["up", "any"])
def test_rotations_keep_distances_and_turn_normals_along(points, rotate):
    turned = changed(points, rotate=rotate)
    assert not np.allclose(turned, points, atol=0.1)
    for part in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(
            turned[:, part] @ turned[:5, part].T, points[:, part] @ points[:5, part].T, atol=1e-4
        )
    np.testing.assert_allclose(
        (turned[:, :3] * turned[:, 3:]).sum(1), (points[:, :3] * points[:, 3:]).sum(1), atol=1e-5
    )
    heights = np.allclose(turned[:, 1], points[:, 1], atol=1e-6)
    assert heights == (rotate == "up")


def test_scale_and_shift_are_the_same_for_all_points_and_leave_normals(points):
    moved = changed(points, scale=(0.5, 2.0), shift=0.1)
    factor = np.ptp(moved[:, 0]) / np.ptp(points[:, 0])
    offset = moved[:, :3] - factor * points[:, :3]
    assert 0.5 <= factor <= 2.0 and np.ptp(offset, axis=0).max() < 1e-5
    assert 0 < abs(offset).max() <= 0.1 + 1e-6
    assert np.array_equal(moved[:, 3:], points[:, 3:])


def test_jitter_is_small_and_cut_off(points):
    noise = (changed(points, jitter=0.01) - points)[:, :3]
    assert 0.009 < noise.std() < 0.011
    assert abs((changed(points, jitter=1.0) - points)[:, :3]).max() <= 0.05 + 1e-6


def test_dropped_points_are_the_first_one_and_their_number_varies(points):
    shares = []
    for seed in range(20):
        left = changed(points, seed, drop=0.8)
        is_first = (left == points[0]).all(1)
        assert np.array_equal(left[~is_first], points[~is_first])
        shares.append(is_first.mean())
    assert max(shares) < 0.85 and min(shares) < 0.2 and max(shares) > 0.5


def test_the_generator_decides(points):
    keys: dict[str, Any] = {"rotate": "any", "jitter": 0.01, "drop": 0.5}
    assert np.array_equal(changed(points, 4, **keys), changed(points, 4, **keys))
    assert not np.array_equal(changed(points, 4, **keys), changed(points, 5, **keys))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.2, 0.8)])
def test_a_scale_that_is_not_a_range_is_refused(scale):
    with pytest.raises(RecipeError, match="expected a list of 2|write the lower first"):
        make("augment", "points", {"scale": scale})
