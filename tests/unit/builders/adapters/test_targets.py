"""Which layers the words of `targets` name, over what libraries call them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlkd_cli.builders.adapters.targets import find_parts
from vlkd_cli.errors import RecipeError


def names(network: nn.Module, *targets: str) -> list[str]:
    return [part.module for part in find_parts(network, list(targets) or None, None)]


def test_a_stem_of_several_convolutions_is_not_part_of_the_blocks() -> None:
    from open_clip.modified_resnet import ModifiedResNet

    network = ModifiedResNet([1, 1, 1, 1], output_dim=8, heads=4, image_size=32, width=8)
    found = names(network)
    assert len(found) == 12 and all(name.startswith("layer") for name in found)


def test_layers_that_weight_channels_are_convolutions_and_no_mlp() -> None:
    from timm.layers import SEModule
    from torchvision.ops import SqueezeExcitation

    for squeeze in (SEModule(8), SqueezeExcitation(8, 4)):
        network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 3), squeeze))
        assert names(network) == ["1.0", "1.1.fc1", "1.1.fc2"]
        with pytest.raises(RecipeError, match="'up' names nothing"):
            names(network, "up")


def test_the_projection_next_to_queries_is_that_of_the_output_whatever_it_is_called() -> None:
    from timm.models.coat import FactorAttnConvRelPosEnc
    from timm.models.levit import Attention
    from timm.models.vision_transformer import ParallelScalingBlock
    from torchvision.models.maxvit import RelativePositionalMultiHeadAttention

    coat = FactorAttnConvRelPosEnc(8, 2, shared_crpe=nn.Identity())
    assert names(nn.ModuleList([coat]), "o") == ["0.proj"]
    levit = nn.ModuleList([Attention(8, key_dim=2, num_heads=2, attn_ratio=3)])
    (part,) = find_parts(levit, ["q"], None)
    assert part.module == "0.qkv.linear" and part.rows is not None
    assert part.rows.equal((torch.arange(20) % 10) < 2)
    parallel = nn.ModuleList([ParallelScalingBlock(8, 2)])
    assert names(parallel) == ["0.in_proj", "0.attn_out_proj"]
    (down,) = find_parts(parallel, ["down"], None)
    assert down.module == "0.mlp_out_proj" and down.inputs
    maxvit = nn.ModuleList([RelativePositionalMultiHeadAttention(8, 4, 16)])
    assert names(maxvit) == ["0.to_qkv", "0.merge"]
