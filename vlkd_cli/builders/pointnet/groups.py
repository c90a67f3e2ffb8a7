"""Which points of a cloud PointNet++ groups: centers spread by farthest point sampling, and the
first points within a radius of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Groups(NamedTuple):
    """The different members of all groups, group after group.

    Args:
        points: of each member, its position among the points of all clouds.
        owners: of each member, its group.
        sizes: of each group, its different members.
        weights: of each member, how often its group holds it.
        num_rows: members of all groups with their repetitions.
    """

    points: Int[Tensor, " P"]
    owners: Int[Tensor, " P"]
    sizes: Int[Tensor, " G"]
    weights: Float[Tensor, "P 1"]
    num_rows: int


@torch.no_grad()
def groups_of(members: Int[Tensor, "B M K"], num_points: int) -> Groups:
    """The groups of a ball query, in which the first member of a group fills it up.

    Args:
        num_points: of a cloud.
    """
    clouds, _, most = members.shape
    starts = num_points * torch.arange(clouds, device=members.device)
    is_first = torch.arange(most, device=members.device) == 0
    is_counted = is_first | (members != members[:, :, :1])
    sizes = is_counted.sum(2).flatten()
    points = (members + starts[:, None, None])[is_counted]
    owners = torch.repeat_interleave(sizes, output_size=len(points))
    weights = torch.ones(len(points), 1, device=members.device)
    weights[sizes.cumsum(0) - sizes, 0] = (1 + most - sizes).float()
    return Groups(points, owners, sizes, weights, members.numel())


@torch.no_grad()
def whole_clouds(clouds: int, num_points: int, device: torch.device) -> Groups:
    """A group for each cloud."""
    total = clouds * num_points
    return Groups(
        torch.arange(total, device=device),
        torch.arange(clouds, device=device).repeat_interleave(num_points),
        torch.full((clouds,), num_points, device=device),
        torch.ones(total, 1, device=device),
        total,
    )


@torch.no_grad()
def farthest_points(points: Float[Tensor, "B N 3"], count: int) -> Int[Tensor, "B M"]:
    """Positions of `count` points, each the farthest from those before it; the first one is point
    0, and of equal distances the smallest position counts.

    Source: Qi et al., arXiv:1706.02413, section 3.2; charlesq34/pointnet2,
    tf_ops/sampling/tf_sampling_g.cu, which starts at 0 too.
    """
    clouds, total, _ = points.shape
    chosen = torch.zeros(clouds, count, dtype=torch.int64, device=points.device)
    nearest = torch.full((clouds, total), torch.inf, dtype=points.dtype, device=points.device)
    # One column per axis: three small passes instead of one over a last axis of three.
    axes = [axis.contiguous() for axis in points.unbind(2)]
    last = chosen[:, 0]
    for step in range(1, count):
        place = points.gather(1, last[:, None, None].expand(-1, 1, 3)).unbind(2)
        squares = [(axis - here).square_() for axis, here in zip(axes, place, strict=True)]
        torch.minimum(nearest, squares[0].add_(squares[1]).add_(squares[2]), out=nearest)
        last = nearest.argmax(dim=1)
        chosen[:, step] = last
    return chosen


@torch.no_grad()
def ball_query(
    points: Float[Tensor, "B N 3"], centers: Float[Tensor, "B M 3"], radius: float, count: int
) -> Int[Tensor, "B M K"]:
    """Positions of the first `count` points, by position, that are nearer than the radius to each
    center; where there are fewer, the first one fills up.

    A center must be one of the points. Squared distances are sums of squared differences: the
    faster matrix product would misplace points near the border.

    Source: charlesq34/pointnet2, tf_ops/grouping/tf_grouping_g.cu.
    """
    total = points.shape[1]
    inside = _squared_distances(points, centers) < radius**2
    # Positions in 32 bits: exact in a float, whose selection is the fastest one there is.
    order = torch.arange(total, 0, -1, device=points.device, dtype=torch.float32)
    found = (inside * order).topk(min(count, total), dim=2).values
    positions = total - found.to(torch.int64)
    # What lies outside came out as position `total`.
    positions = torch.where(positions == total, positions[:, :, :1], positions)
    if count > total:
        filling = positions[:, :, :1].expand(-1, -1, count - total)
        positions = torch.cat([positions, filling], dim=2)
    return positions


def _squared_distances(points: Tensor, centers: Tensor) -> Tensor:
    """`[B, M, N]`, one axis after another: less memory than all differences at once."""
    summed: Tensor | None = None
    for axis in range(3):
        squares = (centers[:, :, None, axis] - points[:, None, :, axis]).square_()
        summed = squares if summed is None else summed.add_(squares)
    assert summed is not None
    return summed
