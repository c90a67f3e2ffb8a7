"""What a mesh tower sees of the samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.meshes.augment import CloudAugment
from vlkd_cli.data.meshes.points import COLUMNS
from vlkd_cli.data.views import seed_of
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import MeshInput


class MeshView:
    """Points `[B, N, 3]`, or `[B, N, 6]` with normals, float32; `[B, V, N, 3]` where a view has
    V > 1 copies.

    Args:
        expected: what the tower expects.
        augment: random changes of points that are chosen at random, both seeded by each sample;
            None: the first points of each cloud, which lie at random anyway.
        copies: how often the changes are made again.
        salt: a number for each view; towers that look at the same view see the same points.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"mesh"})

    def __init__(
        self,
        expected: MeshInput,
        augment: CloudAugment | None = None,
        *,
        copies: int = 1,
        salt: int = 0,
    ) -> None:
        self.expected, self.augment, self.copies, self.salt = expected, augment, copies, salt

    def salted(self, salt: int) -> MeshView:
        """The view with another number."""
        other = copy.copy(self)
        other.salt = salt
        return other

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        clouds = [[self._points(sample, n) for n in range(self.copies)] for sample in samples]
        points = torch.from_numpy(np.array(clouds, dtype=np.float32))
        return points[:, 0] if self.copies == 1 else points

    def _points(self, sample: Sample, number: int) -> np.ndarray:
        cloud, count = sample.mesh, self.expected.points
        assert cloud is not None
        if len(cloud) < count:
            raise DataError(
                f"the meshes have {len(cloud)} points each, and the tower reads {count}. Raise"
                " data.points of reader 'meshes', or lower the tower's points."
            )
        if self.expected.normals and cloud.shape[1] < COLUMNS:
            raise DataError("the tower reads normals, and the points have none: give [P, 6].")
        cloud = cloud[:, : COLUMNS if self.expected.normals else 3]
        if self.augment is None:
            return cloud[:count]
        draw = np.random.default_rng(seed_of(sample.seed, self.salt, number))
        return self.augment.apply(cloud[draw.permutation(len(cloud))[:count]], draw)
