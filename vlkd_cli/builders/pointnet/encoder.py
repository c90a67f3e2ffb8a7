"""The network of PointNet++: stages over groups of points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.builders.pointnet.groups import (
    Groups,
    ball_query,
    farthest_points,
    groups_of,
    whole_clouds,
)
from vlkd_cli.builders.pointnet.sizes import Sizes
from vlkd_cli.distributed.collectives import all_reduce_sum
from vlkd_cli.distributed.runtime import world_size


class Encoder(nn.Module):
    """Three stages over the points.

    Args:
        features: values of a point in addition to its coordinates.
    """

    def __init__(self, sizes: Sizes, features: int) -> None:
        super().__init__()
        stages = []
        for stage in range(2):
            radii, neighbors, widths = (
                each[stage] for each in (sizes.radii, sizes.neighbors, sizes.widths)
            )
            scales = [
                _Scale(features, radius, count, _scaled(own, sizes.width))
                for radius, count, own in zip(radii, neighbors, widths, strict=True)
            ]
            stages.append(_Stage(sizes.centers[stage], scales))
            features = sum(scale.width for scale in scales)
        self.first, self.second = stages
        self.third = _Scale(features, None, None, _scaled(sizes.widths[2], sizes.width))
        self.token_width, self.width = features, self.third.width

    def forward(self, inputs: Float[Tensor, "B N C"]) -> tuple[Tensor, Tensor]:
        """Features `[B, width]`, and those of the second stage's centers `[B, M, token_width]`."""
        # Distances need all the digits of the coordinates.
        inputs = inputs if inputs.dtype == torch.float64 else inputs.float()
        points, features = inputs[:, :, :3].contiguous(), inputs[:, :, 3:]
        for stage in (self.first, self.second):
            points, features = stage(points, features)
        whole = self.third(points, features, None)
        return whole[:, 0], features


class _Stage(nn.Module):
    """Centers with what is around them, at one scale or several."""

    def __init__(self, num_centers: int, scales: Sequence[_Scale]) -> None:
        super().__init__()
        self.num_centers = num_centers
        self.scales = nn.ModuleList(scales)

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(points, self.num_centers)
        centers = points.gather(1, chosen[:, :, None].expand(-1, -1, 3))
        return centers, torch.cat(
            [scale(points, features, centers) for scale in self.scales], dim=2
        )


class _Scale(nn.Module):
    """Shared layers over each group of points, then the maximum of the group.

    A group's rows are (x_j - c, f_j). Its first layer, W_x (x_j - c) + W_f f_j + b, is
    (W_x x_j + W_f f_j + b) - W_x c: computed once for each point and each center, and gathered,
    where grouping first would compute it once for each member of each group. Layers see a member
    once, however often it fills up its group; batch norms weigh it.

    Args:
        features: width of f_j.
        radius: of the groups; None: one group of all points, around the origin.
        neighbors: most members of a group.
        widths: of the layers.
    """

    def __init__(
        self, features: int, radius: float | None, neighbors: int | None, widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.radius, self.neighbors, self.width = radius, neighbors, widths[-1]
        ins = [3 + features, *widths[:-1]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(ins, widths, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(
        self, points: Tensor, features: Tensor, centers: Tensor | None
    ) -> Float[Tensor, "B M D"]:
        clouds, total, _ = points.shape
        values = self._first_layer(points, features).flatten(0, 1)
        if centers is None:
            groups = whole_clouds(clouds, total, points.device)
        else:
            assert self.radius is not None and self.neighbors is not None
            members = ball_query(points, centers, self.radius, self.neighbors)
            groups = groups_of(members, total)
            at_centers = self._place(centers).flatten(0, 1)
            values = values.index_select(0, groups.points)
            values = values - at_centers.index_select(0, groups.owners)
        for number, norm in enumerate(self.norms):
            values = normalized(self.layers[number](values) if number else values, norm, groups)
            if number < len(self.norms) - 1:
                values = values.relu_()
        # The maximum of what relu gives is what relu gives of the maximum, over fewer values.
        largest = torch.segment_reduce(values, "max", lengths=groups.sizes)
        return largest.relu().view(clouds, -1, self.width)

    def _first_layer(self, points: Tensor, features: Tensor) -> Tensor:
        """`[B, N, width of the first layer]`; a difference of two of them follows, so all digits
        count."""
        layer: Any = self.layers[0]
        with torch.autocast(points.device.type, enabled=False):
            whole = torch.cat([points, features.to(points.dtype)], dim=2)
            rows: Tensor = layer(whole)
        return rows

    def _place(self, centers: Tensor) -> Tensor:
        layer: Any = self.layers[0]
        with torch.autocast(centers.device.type, enabled=False):
            return nn.functional.linear(centers, layer.weight[:, :3])


def normalized(values: Float[Tensor, "P D"], norm: Any, groups: Groups) -> Float[Tensor, "P D"]:
    """A batch norm of members, each as often as its group holds it.

    Sums are over float32 values at least, which `sum` adds up in pairs: native batch norms lose
    digits over many rows. A norm of all ranks (`train.sync_batch_norm`) takes their sums together.
    """
    if not norm.training:
        normed: Tensor = norm(values)
        return normed
    ranks = world_size() if isinstance(norm, nn.SyncBatchNorm) else 1
    count = groups.num_rows * ranks

    def mean_of(each: Tensor) -> Tensor:
        total = (groups.weights * each).sum(0)
        return (all_reduce_sum(total) if ranks > 1 else total) / count

    mean = mean_of(values)
    centered = values - mean
    variance = mean_of(centered.square())
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * (count / max(count - 1, 1)), norm.momentum)
    scaled: Tensor = centered * (torch.rsqrt(variance + norm.eps) * norm.weight) + norm.bias
    return scaled


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    return [max(1, round(width * factor)) for width in widths]
