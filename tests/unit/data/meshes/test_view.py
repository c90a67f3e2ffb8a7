"""What a mesh tower sees: the first points in evaluation, seeded ones in training."""

from __future__ import annotations

import numpy as np
import pytest

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.meshes.augment import PointsAugment
from vlkd_cli.data.meshes.view import MeshView
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import MeshInput

CLOUD = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
STILL = PointsAugment(scale=(1.0, 1.0), shift=0, jitter=0, drop=0)


def samples(*seeds: int) -> list[Sample]:
    return [Sample(0, mesh=CLOUD, seed=seed) for seed in seeds]


def test_evaluation_takes_the_first_points():
    assert np.array_equal(MeshView(MeshInput(16))(samples(1, 2)), np.stack([CLOUD[:16, :3]] * 2))
    assert np.array_equal(MeshView(MeshInput(16, normals=True))(samples(1))[0], CLOUD[:16])


def test_training_takes_points_by_the_seed_of_the_sample():
    view = MeshView(MeshInput(16), STILL)
    first, same, other = view(samples(1, 1, 2))
    assert first.equal(same) and not first.equal(other)
    rows = {tuple(row) for row in CLOUD[:, :3].tolist()}
    chosen = [tuple(row) for row in first.tolist()]
    assert set(chosen) <= rows and len(set(chosen)) == 16


def test_copies_and_views_of_another_number_see_other_points():
    view = MeshView(MeshInput(16), STILL, copies=2)
    found = view(samples(1))
    assert found.shape == (1, 2, 16, 3) and not found[0, 0].equal(found[0, 1])
    assert not view.salted(7)(samples(1)).equal(found)
    assert view.salted(0)(samples(1)).equal(found)


def test_what_the_tower_reads_and_the_data_lacks_is_one_line():
    with pytest.raises(DataError, match="have 64 points each, and the tower reads 65"):
        MeshView(MeshInput(65))(samples(1))
    with pytest.raises(DataError, match="reads normals"):
        MeshView(MeshInput(4, normals=True))([Sample(0, mesh=CLOUD[:, :3])])
