from __future__ import annotations

import copy

import torch

from vlkd_cli.heads.prototypes import PrototypeHead


def small_head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, num_prototypes=9, bottleneck=4, layers=2, hidden=8)


def test_outputs_are_cosines() -> None:
    assert small_head()(100 * torch.randn(5, 6)).abs().max() <= 1 + 1e-6


def test_lengths_of_prototypes_have_no_effect() -> None:
    head, features = small_head(), torch.randn(5, 6)
    before = head(features)
    with torch.no_grad():
        head.prototypes.mul_(7.0)
    torch.testing.assert_close(head(features), before)


def test_deepcopy_after_a_forward_and_a_moving_average_of_plain_tensors_work() -> None:
    head, features = small_head(), torch.randn(5, 6)
    head(features).sum().backward()
    average = copy.deepcopy(head)
    with torch.no_grad():
        for old, new in zip(average.parameters(), head.parameters(), strict=True):
            old.lerp_(new + 1, 0.5)
    fresh = small_head()
    fresh.load_state_dict(average.state_dict())
    torch.testing.assert_close(fresh(features), average(features))
    assert set(head.state_dict()) == {
        "layers.0.weight",
        "layers.0.bias",
        "layers.2.weight",
        "layers.2.bias",
        "prototypes",
    }
