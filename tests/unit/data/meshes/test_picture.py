"""Clouds as pictures."""

from __future__ import annotations

import numpy as np

from tests.support.meshes import box, off_text
from vlkd_cli.data.meshes.picture import SIDE_PX, picture_of
from vlkd_cli.data.meshes.points import cloud_of


def test_a_tall_box_is_tall_from_the_front_and_the_side_and_small_from_above():
    cloud = cloud_of(off_text(box(1, 6, 1)).encode(), "off", 1024)
    pixels = np.asarray(picture_of(cloud))
    assert pixels.shape == (SIDE_PX, SIDE_PX, 3)
    half = SIDE_PX // 2
    for top, left, is_tall in ((0, 0, True), (0, half, True), (half, 0, False)):
        rows, columns = np.nonzero(pixels[top : top + half, left : left + half, 0] < 255)
        assert (np.ptp(rows) > 3 * np.ptp(columns)) == is_tall
