"""Centers and their neighbors; see also the goldens of search tuning."""

from __future__ import annotations

import torch

from vlkd_cli.builders.pointnet.groups import ball_query, farthest_points

LINE = torch.tensor([[[float(x), 0.0, 0.0] for x in (0, 1, 2, 3, 10)]])


def test_centers_begin_at_the_first_point_and_go_to_the_farthest():
    assert farthest_points(LINE, 3).tolist() == [[0, 4, 3]]
    same = torch.ones(1, 4, 3)
    assert farthest_points(same, 3).tolist() == [[0, 0, 0]]


def test_a_ball_holds_the_first_points_nearer_than_its_radius():
    centers = LINE[:, [1, 4]]
    # The point at distance 1 of radius 1 lies outside.
    assert ball_query(LINE, centers, 1.0, 3).tolist() == [[[1, 1, 1], [4, 4, 4]]]
    assert ball_query(LINE, centers, 1.1, 2).tolist() == [[[0, 1], [4, 4]]]
    assert ball_query(LINE, centers, 2.1, 8).tolist() == [
        [[0, 1, 2, 3, 0, 0, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]]
    ]
