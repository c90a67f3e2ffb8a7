"""Points of a surface: even over the area, a function of the bytes; see also the goldens."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.meshes import box, off_text
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.meshes.points import cloud_of, cloud_of_file, cloud_of_points


def test_a_file_gives_the_same_points_wherever_it_lies(tmp_path):
    text = off_text(box())
    (tmp_path / "a.off").write_text(text)
    (tmp_path / "b.off").write_text(text)
    (tmp_path / "c.off").write_text(text + "# another\n")
    one, same, other = (cloud_of_file(str(tmp_path / f"{name}.off"), 64) for name in "abc")
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    longer = cloud_of(text.encode(), "off", 128)
    assert longer.shape == (128, 6) and longer.dtype == np.float32
    # The first points are the same; how they are centered depends on all of them.
    gaps = np.linalg.norm(np.diff(longer[:64, :3], axis=0), axis=1)
    own = np.linalg.norm(np.diff(one[:, :3], axis=0), axis=1)
    assert np.ptp(gaps / own) < 1e-4


def test_points_lie_on_the_faces_that_their_normals_name():
    cloud = cloud_of(off_text(box(2, 2, 2)).encode(), "off", 512)
    # A cube's points are those with one coordinate at its largest, on the side of the normal.
    along = (cloud[:, :3] * cloud[:, 3:]).sum(1)
    assert np.ptp(along) < 0.1 and along.min() > 0.4
    assert np.allclose(abs(cloud[:, 3:]).sum(1), 1)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([(0, 0, 0), (1, 1, 1), (2, 2, 2)], "has a surface of area 0"),
        ([(0, 0, 0), (1e200, 0, 0), (0, 1e200, 0)], "has a surface of area"),
    ],
)
def test_a_surface_without_a_finite_area_is_broken(corners, message):
    with pytest.raises(Broken, match=message):
        cloud_of(off_text(corners, [(0, 1, 2)]).encode(), "off")


def test_points_of_a_caller_are_centered_and_scaled():
    points = np.array([[10.0, 0, 0], [14, 0, 0], [12, 1, 0], [12, -1, 0]])
    cloud = cloud_of_points(points)
    np.testing.assert_allclose(cloud, (points - [12, 0, 0]) / 2)
    assert cloud_of_points(np.ones((4, 6)) * np.arange(4)[:, None]).shape == (4, 6)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((5, 4)), r"is an array \[5, 4\]"),
        (np.zeros((0, 3)), r"is an array \[0, 3\]"),
        (np.ones((5, 3)), "all of its points are the same"),
        (np.full((5, 3), np.nan), "not finite"),
    ],
)
def test_points_that_do_not_form_a_cloud_are_broken(points, message):
    with pytest.raises(Broken, match=message):
        cloud_of_points(points)
