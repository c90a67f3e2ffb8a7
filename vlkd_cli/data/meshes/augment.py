"""Random changes to the point clouds of training."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.recipe.types import ModalityName, NonNegative, PositiveRange, Probability

UP = 1
"""The axis that points up in every cloud: y."""
LONGEST_JITTER = 0.05


class CloudAugment:
    """Base of the augmentations of meshes; every random choice comes from the generator that is
    handed in."""

    modality: ClassVar[ModalityName] = "mesh"

    def apply(self, points: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
        """Change points `[N, 3]`, or `[N, 6]` with normals, of the unit sphere."""
        raise NotImplementedError


class PointsAugment(CloudAugment):
    """Rotate, scale, shift and jitter the points, and drop some of them, in this order.

    Args:
        rotate: `up` turns about the vertical axis, `any` in space; for data without a common
            orientation.
        scale: smallest and largest factor on the size.
        shift: largest shift along each axis; the model fills the unit sphere.
        jitter: standard deviation of the noise of each coordinate, cut off at 0.05.
        drop: highest fraction of points that are replaced by the first one.

    Source: Qi et al., PointNet++, NeurIPS 2017, arXiv:1706.02413; charlesq34/pointnet2,
    utils/provider.py and train.py. Differs in not rotating unless asked to.
    """

    def __init__(
        self,
        *,
        rotate: Literal["none", "up", "any"] = "none",
        scale: PositiveRange = (0.8, 1.25),
        shift: NonNegative = 0.1,
        jitter: NonNegative = 0.01,
        drop: Probability = 0.875,
    ) -> None:
        self.rotate, self.scale = rotate, (scale[0], scale[1])
        self.shift, self.jitter, self.drop = shift, jitter, drop

    def apply(self, points: NDArray[np.float32], draw: np.random.Generator) -> NDArray[np.float32]:
        changed = points.astype(np.float64)
        if self.rotate != "none":
            turned = _rotation(self.rotate == "any", draw)
            for first in range(0, changed.shape[1], 3):
                changed[:, first : first + 3] = changed[:, first : first + 3] @ turned.T
        positions = changed[:, :3]
        positions *= draw.uniform(*self.scale)
        positions += draw.uniform(-self.shift, self.shift, 3)
        noise = self.jitter * draw.standard_normal(positions.shape)
        positions += noise.clip(-LONGEST_JITTER, LONGEST_JITTER)
        lost = draw.random(len(changed)) < draw.random() * self.drop
        changed[lost] = changed[0]
        return changed.astype(np.float32)


def _rotation(in_space: bool, draw: np.random.Generator) -> NDArray[np.float64]:
    """A random rotation `[3, 3]`, about the vertical axis or uniform in space (by a random unit
    quaternion)."""
    if in_space:
        w, x, y, z = (value := draw.standard_normal(4)) / np.linalg.norm(value)
    else:
        half = draw.uniform(0, np.pi)
        axis = np.zeros(3)
        axis[UP] = np.sin(half)
        w, (x, y, z) = np.cos(half), axis
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
