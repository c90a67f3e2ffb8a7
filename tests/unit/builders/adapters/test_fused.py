"""Which rows of a fused weight are queries, keys and values, in every order that timm has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vlkd_cli.builders.adapters.fused import is_by_head, rows_of, segments
from vlkd_cli.errors import RecipeError


def plain() -> nn.Module:
    from timm.models.vision_transformer import Attention

    return Attention(8, num_heads=2, qkv_bias=True)


def tiny_vit() -> nn.Module:
    from timm.models.tiny_vit import Attention

    return Attention(8, key_dim=2, num_heads=2, attn_ratio=3, resolution=(2, 2))


def maxvit() -> nn.Module:
    from timm.models.maxxvit import AttentionCl

    return AttentionCl(8, dim_head=4, head_first=True)


def efficientformer() -> nn.Module:
    from timm.models.efficientformer import Attention

    return Attention(8, key_dim=2, num_heads=2, attn_ratio=3, resolution=2)


@pytest.mark.parametrize(
    ("make", "by_head"),
    [(plain, False), (tiny_vit, True), (maxvit, True), (efficientformer, True)],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_rows_are_those_that_the_network_takes_for_queries_keys_and_values(
    make: Any, by_head: bool
) -> None:
    torch.manual_seed(0)
    attention: Any = make()
    attention.eval()
    x = torch.randn(2, 4, 8)
    found = segments(attention, "qkv", len(attention.qkv.weight))
    assert is_by_head(attention, "qkv") is by_head
    before = {name: value.clone() for name, value in attention.qkv.state_dict().items()}

    def output(zero: str, noisy: str | None = None) -> torch.Tensor:
        attention.qkv.load_state_dict(before)
        changes = [(zero, 0.0)] if noisy is None else [(zero, 0.0), (noisy, -3.0)]
        with torch.no_grad():
            for word, change in changes:
                rows = rows_of(found, {word}, "attn.qkv")
                assert rows is not None
                attention.qkv.weight[rows] *= change
                attention.qkv.bias[rows] *= change
            return attention(x)

    # Without queries keys do not matter, without values nothing gets through.
    torch.testing.assert_close(output("q", "k"), output("q"))
    assert not torch.allclose(output("q", "v"), output("q"))
    torch.testing.assert_close(output("v"), attention.proj.bias.expand(2, 4, 8))


def test_other_orders_are_known_or_refused() -> None:
    from timm.models.gcvit import WindowAttentionGlobal
    from timm.models.vision_transformer import ParallelScalingBlock

    both = WindowAttentionGlobal(8, 2, (2, 2))
    assert segments(both, "qkv", len(both.qkv.weight)) == [("k", 8), ("v", 8)]
    block = ParallelScalingBlock(8, 2, mlp_ratio=2)
    assert segments(block, "in_proj", len(block.in_proj.weight)) == [
        ("", 16),
        ("q", 8),
        ("k", 8),
        ("v", 8),
    ]
    other = nn.ModuleDict({"qkv_proj": nn.Linear(8, 17), "out_proj": nn.Linear(8, 8)})
    unknown = segments(other, "qkv_proj", 17)
    assert unknown is None and rows_of(unknown, set("qkv"), "attn.qkv_proj") is None
    with pytest.raises(RecipeError, match="'attn.qkv_proj' holds .* in an order that vlkd does"):
        rows_of(unknown, {"q"}, "attn.qkv_proj")
