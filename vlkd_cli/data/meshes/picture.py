"""A point cloud as a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 160
_VIEWS = (
    # From the front, from the side, from above, and from the front, right and above.
    ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
    ((0.8, 0.0, -0.6), (-0.3, 0.866, -0.4)),
)
"""Directions to the right and up of each view."""


def picture_of(cloud: NDArray[np.float32]) -> Image.Image:
    """The points of a cloud from four sides, `SIDE_PX` squared; nearer points are darker.

    Args:
        cloud: `[N, 3]` or more columns, in the unit sphere, y up.
    """
    pixels = np.full((SIDE_PX, SIDE_PX), 255, dtype=np.uint8)
    half = SIDE_PX // 2
    for number, (right, up) in enumerate(_VIEWS):
        top, left = (half * cell for cell in divmod(number, 2))
        pixels[top : top + half, left : left + half] = _view(cloud[:, :3], right, up, half)
    return Image.fromarray(pixels).convert("RGB")


def _view(
    points: NDArray[np.float32],
    right: tuple[float, ...],
    up: tuple[float, ...],
    side_px: int,
) -> NDArray[np.uint8]:
    axes = np.array([right, up, np.cross(right, up)])
    across, height, depth = (points @ axes.T).clip(-1, 1).T
    columns = ((across + 1) / 2 * (side_px - 3)).astype(int) + 1
    rows = ((1 - height) / 2 * (side_px - 3)).astype(int) + 1
    shades = ((1 - depth) / 2 * 170).astype(np.uint8)
    pixels = np.full((side_px, side_px), 255, dtype=np.uint8)
    # A point is a square of two pixels; the darkest one shows.
    for down, aside in ((0, 0), (0, 1), (1, 0), (1, 1)):
        np.minimum.at(pixels, (rows + down, columns + aside), shades)
    return pixels
