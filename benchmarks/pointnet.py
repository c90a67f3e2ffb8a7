"""PointNet++: the first layer of a stage before grouping against grouping first. 8 clouds of 1,024
points, forward and backward, float32, one thread.

    python benchmarks/pointnet.py [--rounds 3] [--clouds 8]

Prints seconds of both, their ratio and the processor. Exits with 1 where forward takes more than
0.6 of the plain form's time.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable

import torch
from processor import processor
from torch import Tensor

from vlkd_cli.builders.pointnet.encoder import Encoder
from vlkd_cli.builders.pointnet.sizes import sizes_of

HIGHEST_RATIO = 0.6


def farthest(points: Tensor, count: int) -> Tensor:
    """Farthest points, with the differences of all axes at once."""
    chosen = [torch.zeros(len(points), dtype=torch.int64)]
    nearest = torch.full(points.shape[:2], torch.inf)
    rows = torch.arange(len(points))
    for _ in range(count - 1):
        distance = (points - points[rows, chosen[-1]][:, None]).square().sum(2)
        nearest = torch.minimum(nearest, distance)
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, 1)


def ball(points: Tensor, centers: Tensor, radius: float, count: int) -> Tensor:
    """The first points in reach, by a sort of all positions."""
    distance = (centers[:, :, None] - points[:, None]).square().sum(3)
    total = points.shape[1]
    positions = torch.where(distance < radius**2, torch.arange(total), total)
    positions = positions.sort(2).values[:, :, :count]
    return torch.where(positions == total, positions[:, :, :1], positions)


def plain(network: Encoder, points: Tensor) -> Tensor:
    """Every layer on every member of every group, as the usual PyTorch port has it."""
    rows = torch.arange(len(points))[:, None, None]
    features = points[:, :, :0]
    for stage in (network.first, network.second):
        chosen = farthest(points, stage.num_centers)
        centers = points.gather(1, chosen[:, :, None].expand(-1, -1, 3))
        scale = stage.scales[0]
        index = ball(points, centers, scale.radius, scale.neighbors)
        members = torch.cat(
            [points[rows, index] - centers[:, :, None], features[rows, index]], dim=3
        )
        features, points = layered(scale, members), centers
    return layered(network.third, torch.cat([points, features], 2)[:, None])[:, 0]


def layered(scale: torch.nn.Module, values: Tensor) -> Tensor:
    for layer, norm in zip(scale.layers, scale.norms, strict=True):
        values = layer(values)
        values = norm(values.flatten(0, 2)).view(values.shape).relu()
    return values.amax(2)


def seconds(call: Callable[[], Tensor]) -> tuple[float, float]:
    """CPU seconds of forward and backward."""
    start = time.process_time()
    value = call().square().sum()
    middle = time.process_time()
    value.backward()
    return middle - start, time.process_time() - middle


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clouds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(processor())
    network = Encoder(sizes_of("ssg", {}), 0)
    points = torch.nn.functional.normalize(torch.randn(options.clouds, 1024, 3), dim=2)
    forms = {"vlkd": lambda: network(points)[0], "plain": lambda: plain(network, points)}
    exact = copy.deepcopy(network).double()
    torch.testing.assert_close(exact(points.double())[0], plain(exact, points.double()))
    # Alternating, so that both meet the same load; the best round of each counts.
    rounds = [{name: seconds(call) for name, call in forms.items()} for _ in range(options.rounds)]
    best = {name: [min(r[name][part] for r in rounds) for part in (0, 1)] for name in forms}
    ratios = [own / other for own, other in zip(best["vlkd"], best["plain"], strict=True)]
    for part, name in enumerate(("forward", "backward")):
        print(
            f"pointnet {name}, {options.clouds} clouds: vlkd {best['vlkd'][part]:.2f} s, plain"
            f" {best['plain'][part]:.2f} s, ratio {ratios[part]:.2f}"
        )
    return 0 if ratios[0] <= HIGHEST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
