"""The first layer before grouping gives what it gives after it; properties of the stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.ranks import run_on_ranks
from vlkd_cli.builders.pointnet.encoder import Encoder, _Scale, normalized
from vlkd_cli.builders.pointnet.groups import ball_query, farthest_points, groups_of
from vlkd_cli.builders.pointnet.sizes import sizes_of
from vlkd_cli.distributed.runtime import rank

CONFIG = {"centers": [16, 8], "neighbors": [6, 5], "radii": [0.5, 1.0], "width": 0.1}
SCALES = {
    "centers": [16, 8],
    "neighbors": [[4, 6], [3, 5]],
    "radii": [[0.3, 0.6], [0.6, 1.2]],
    "widths": [[[5, 6], [7]], [[8, 9], [6, 5, 4]], [9, 8]],
}


def clouds(columns: int = 3, count: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, count, columns, generator=generator, dtype=torch.float64) / 2


def encoder(model: str = "ssg", features: int = 0, **config: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(sizes_of(model, {**CONFIG, **config}), features).double()


def plainly(scale: _Scale, points: Tensor, features: Tensor, centers: Tensor | None) -> Tensor:
    """What the authors' code does: group first, then every layer on every member."""
    if centers is None:
        members = torch.cat([points, features], 2)[:, None]
    else:
        index = ball_query(points, centers, scale.radius, scale.neighbors)
        rows = torch.arange(len(points))[:, None, None]
        members = torch.cat(
            [points[rows, index] - centers[:, :, None], features[rows, index]], dim=3
        )
    values = members
    for layer, norm in zip(scale.layers, scale.norms, strict=True):
        values = layer(values)
        values = norm(values.flatten(0, 2)).view(values.shape).relu()
    return values.amax(2)


def test_layers_before_grouping_equal_layers_after_it_in_value_and_gradient():
    # Wide enough that no two members of a group share a maximum, whose gradient they would share.
    for model, features, config in (("ssg", 0, {}), ("msg", 3, {**SCALES, "width": 1.0})):
        network = encoder(model, features, **config)
        given = clouds(3 + features)
        results = []
        for form in ("fast", "plain"):
            network.zero_grad()
            torch.manual_seed(0)
            if form == "fast":
                value, _ = network(given)
            else:
                points, rows = given[:, :, :3], given[:, :, 3:]
                for stage in (network.first, network.second):
                    chosen = farthest_points(points, stage.num_centers)
                    centers = points.gather(1, chosen[:, :, None].expand(-1, -1, 3))
                    rows = torch.cat([plainly(s, points, rows, centers) for s in stage.scales], 2)
                    points = centers
                value = plainly(network.third, points, rows, None)[:, 0]
            value.square().sum().backward()
            results.append([value.detach(), *(p.grad.clone() for p in network.parameters())])
        for fast, plain in zip(*results, strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_with_all_points_in_reach_their_order_but_the_first_does_not_matter():
    network = encoder(neighbors=[40, 16], radii=[9.0, 9.0]).eval()
    points = clouds()
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(39)])
    torch.testing.assert_close(network(points)[0], network(points[:, order])[0])


def test_a_shift_leaves_the_first_stage_as_it_is():
    network = encoder().eval()
    points = clouds()
    nothing = points[:, :, :0]
    still, moved = (network.first(each, nothing)[1] for each in (points, points + 1.25))
    torch.testing.assert_close(still, moved)


def test_points_are_float32_under_autocast():
    network = encoder().float().eval()
    points = clouds().float()
    shift = torch.tensor([100.0, 0, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # In 16 bits, points 100 away from the origin would be a grid of quarters.
        still, moved = (network.first(each, each[:, :, :0])[1] for each in (points, points + shift))
    torch.testing.assert_close(still.float(), moved.float(), rtol=0.05, atol=0.05)


def test_a_batch_norm_weighs_members_as_often_as_they_fill_up_their_group():
    # Two groups of four, which hold two members and one.
    members = torch.tensor([[[0, 2, 0, 0], [1, 1, 1, 1]]])
    values = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    norms = [torch.nn.BatchNorm1d(5).double() for _ in range(2)]
    for momentum, is_training in ((0.1, True), (0.0, True), (0.1, False)):
        for norm in norms:
            norm.momentum = momentum
            norm.train(is_training)
        own, plain = (values.clone().requires_grad_() for _ in range(2))
        groups = groups_of(members, 3)
        found = normalized(own[groups.points], norms[0], groups)
        expected = norms[1](plain[members.flatten()])[[0, 1, 4]]
        torch.testing.assert_close(found, expected)
        weights = torch.arange(5.0, dtype=torch.float64)
        for value, given in ((found, own), (expected, plain)):
            (value * weights).square().sum().backward()
            assert given.grad is not None
        torch.testing.assert_close(own.grad, plain.grad)
        for name, state in norms[0].state_dict().items():
            torch.testing.assert_close(state, norms[1].state_dict()[name])


def _halves() -> list[np.ndarray]:
    """On two ranks, the members and gradients of half of the groups through one norm of both."""
    norm = torch.nn.SyncBatchNorm(5).double()
    own = VALUES[3 * rank() : 3 * rank() + 3].clone().requires_grad_()
    groups = groups_of(torch.tensor([[[0, 2, 0, 0], [1, 1, 1, 1]]]), 3)
    found = normalized(own[groups.points], norm, groups)
    found.square().mul(torch.arange(5.0)).sum().backward()
    assert own.grad is not None
    return [each.detach().numpy() for each in (found, own.grad, norm.running_var)]


VALUES = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.slow
def test_a_norm_of_all_ranks_is_that_of_all_members():
    norm, whole = torch.nn.BatchNorm1d(5).double(), VALUES.clone().requires_grad_()
    groups = groups_of(torch.tensor([[[0, 2, 0, 0], [1, 1, 1, 1]]] * 2), 3)
    found = normalized(whole[groups.points], norm, groups)
    found.square().mul(torch.arange(5.0)).sum().backward()
    assert whole.grad is not None
    for number, (half, gradient, variance) in enumerate(run_on_ranks(_halves, 2)):
        own = slice(3 * number, 3 * number + 3)
        np.testing.assert_allclose(half, found.detach()[own], rtol=1e-9)
        np.testing.assert_allclose(gradient, whole.grad[own], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(variance, norm.running_var, rtol=1e-9)
