"""The quicker ways through open_clip's transformers give what open_clip itself gives, in value and
gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlkd_cli.builders.openclip.blocks import PackedAttention, PatchEmbedding
from vlkd_cli.builders.openclip.builder import OpenCLIP

IMAGE = {"layers": 2, "width": 32, "heads": 2, "image_size": 32, "patch_size": 8, "embed_dim": 16}
TEXT = {"layers": 2, "width": 32, "heads": 2, "embed_dim": 16}
CAPTIONS = ["a dog", "two dogs run over the snow", "one red kite above a hill"]


def slow_copy(encoder: nn.Module) -> Any:
    """The same encoder as open_clip builds it."""
    encoder = copy.deepcopy(encoder)
    for module in encoder.modules():
        if type(module) is PackedAttention:
            module.__class__ = nn.MultiheadAttention
        if type(module) is PatchEmbedding:
            module.__class__ = nn.Conv2d
    return encoder


def value_and_gradients(
    encoder: nn.Module, run: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    value = run()
    direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
    (value.float() * direction).sum().backward()
    gradients = {
        name: parameter.grad
        for name, parameter in encoder.named_parameters()
        if parameter.grad is not None
    }
    return value.detach().float(), gradients


def compare(
    ours: tuple[Tensor, dict[str, Tensor]],
    theirs: tuple[Tensor, dict[str, Tensor]],
    tolerance: float,
) -> None:
    assert set(ours[1]) == set(theirs[1]) and len(ours[1]) > 20
    torch.testing.assert_close(
        ours[0], theirs[0], rtol=tolerance, atol=tolerance * float(theirs[0].abs().max())
    )
    for name, gradient in theirs[1].items():
        assert (
            float((ours[1][name] - gradient).norm()) <= tolerance * float(gradient.norm()) + 1e-7
        ), name


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.06)])
def test_an_image_tower_gives_open_clips_feature_and_gradient(
    precision: str, tolerance: float
) -> None:
    torch.manual_seed(0)
    backbone: Any = OpenCLIP(config=IMAGE).build("image")
    original = slow_copy(backbone.encoder)
    images = torch.randn(3, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        ours = value_and_gradients(backbone.encoder, lambda: backbone(images).feature)
        theirs = value_and_gradients(original, lambda: original(images))
    compare(ours, theirs, tolerance)


@pytest.mark.parametrize("pool_type", ["argmax", "first"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.06)])
def test_a_text_tower_gives_open_clips_feature_and_gradient(
    precision: str, tolerance: float, pool_type: str
) -> None:
    torch.manual_seed(0)
    backbone: Any = OpenCLIP(config={**TEXT, "pool_type": pool_type}).build("text")
    original = slow_copy(backbone.encoder)
    tokens = backbone.input(CAPTIONS)
    padded = torch.zeros(len(CAPTIONS), 77, dtype=torch.long)
    padded[:, : tokens["input_ids"].shape[1]] = tokens["input_ids"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        ours = value_and_gradients(backbone.encoder, lambda: backbone(tokens).feature)
        theirs = value_and_gradients(original, lambda: original(padded))
    compare(ours, theirs, tolerance)


def test_all_tokens_are_open_clips_own() -> None:
    torch.manual_seed(0)
    backbone: Any = OpenCLIP(config=IMAGE).build("image")
    original = OpenCLIP(config=IMAGE).build("image")
    original.load_state_dict(backbone.state_dict())
    original.encoder = slow_copy(original.encoder)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        backbone(images).tokens.values, original(images).tokens.values, rtol=1e-5, atol=1e-6
    )


def test_names_of_weights_stay() -> None:
    backbone = OpenCLIP(config=IMAGE).build("image")
    names = {name for name, _ in backbone.named_parameters()}
    assert {"encoder.conv1.weight", "encoder.transformer.resblocks.1.attn.in_proj_weight"} <= names
    kinds = [type(module) for module in backbone.modules()]
    assert kinds.count(PackedAttention) == 2 and kinds.count(PatchEmbedding) == 1


def test_attention_with_weights_or_masked_keys_is_torchs() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    ours = copy.deepcopy(theirs)
    ours.__class__ = PackedAttention
    tokens, masked = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    for keys in ({"need_weights": True}, {"need_weights": False, "key_padding_mask": masked}):
        for own, other in zip(
            ours(tokens, tokens, tokens, **keys),
            theirs(tokens, tokens, tokens, **keys),
            strict=True,
        ):
            assert (own is None and other is None) or own.equal(other)
