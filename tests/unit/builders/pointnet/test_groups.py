"""Centers and their neighbors; see also the goldens of search tuning."""

from __future__ import annotations

import torch

from vlkd_cli.builders.pointnet.groups import ball_query, farthest_points, groups_of

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


def test_groups_list_each_member_once_with_its_repetitions():
    members = torch.tensor([[[0, 2, 0, 0], [1, 1, 1, 1]], [[2, 0, 2, 2], [0, 1, 2, 0]]])
    points, owners, sizes, weights, num_rows = groups_of(members, 5)
    assert points.tolist() == [0, 2, 1, 5 + 2, 5 + 0, 5 + 0, 5 + 1, 5 + 2]
    assert owners.tolist() == [0, 0, 1, 2, 2, 3, 3, 3]
    assert sizes.tolist() == [2, 1, 2, 3]
    assert weights.flatten().tolist() == [3, 1, 4, 3, 1, 2, 1, 1]
    assert num_rows == weights.sum() == 16
