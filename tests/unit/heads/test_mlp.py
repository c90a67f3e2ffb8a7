from __future__ import annotations

import pytest
import torch
from torch import nn

from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.heads.mlp import MLPHead


def linears(head: nn.Module) -> list[tuple[int, int, bool]]:
    return [
        (part.in_features, part.out_features, part.bias is not None)
        for part in head.modules()
        if isinstance(part, nn.Linear)
    ]


def test_layers_are_the_dino_heads() -> None:
    head = MLPHead(384, width=256, layers=3, hidden=2048)
    assert linears(head) == [(384, 2048, True), (2048, 2048, True), (2048, 256, True)]
    assert head.width == 256
    assert head(torch.randn(2, 384)).shape == (2, 256)


def test_one_layer_is_a_linear_map() -> None:
    assert linears(MLPHead(8, width=4, layers=1)) == [(8, 4, True)]


def test_a_bottleneck_is_followed_by_a_linear_layer_without_bias() -> None:
    assert linears(MLPHead(8, width=32, layers=2, hidden=16, bottleneck=4)) == [
        (8, 16, True),
        (16, 4, True),
        (4, 32, False),
    ]


def test_a_batch_norm_replaces_the_bias_before_it() -> None:
    head = MLPHead(8, width=4, layers=2, hidden=16, norm="batch")
    assert linears(head) == [(8, 16, False), (16, 4, True)]
    assert any(isinstance(part, nn.BatchNorm1d) for part in head.modules())


def test_norm_activation_and_dropout_are_the_chosen_ones() -> None:
    kinds = [
        type(part)
        for part in MLPHead(
            8, width=4, layers=2, hidden=16, norm="layer", activation="relu", dropout=0.1
        ).layers
    ]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Linear]


@pytest.mark.parametrize(
    "head", [LinearHead(512, width=512), MLPHead(512, width=512, layers=2, hidden=512)]
)
def test_weights_start_truncated_normal_and_biases_at_zero(head: nn.Module) -> None:
    for part in head.modules():
        if isinstance(part, nn.Linear):
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert not part.bias.any()


def test_heads_do_not_normalize() -> None:
    torch.manual_seed(0)
    for head in (LinearHead(8, width=4), MLPHead(8, width=4, layers=2, hidden=16)):
        features = torch.randn(3, 8)
        assert (head(features).norm(dim=1) - 1).abs().min() > 1e-3
    # A linear head preserves scale.
    linear = LinearHead(8, width=4)
    torch.testing.assert_close(linear(2 * features), 2 * linear(features))


@pytest.mark.parametrize(("last_norm", "affine"), [("batch", True), ("batch_plain", False)])
def test_a_last_norm_gives_outputs_of_unit_variance(last_norm, affine):
    torch.manual_seed(0)
    head = MLPHead(6, width=4, layers=2, hidden=8, last_norm=last_norm).train()
    rows = head(1e4 * torch.randn(64, 6))
    torch.testing.assert_close(rows.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.var(0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)
    assert head.layers[-1].affine is affine and head.layers[-2].bias is None
