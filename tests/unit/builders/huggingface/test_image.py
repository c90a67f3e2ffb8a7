"""Vision encoders of transformers: the feature and tokens of every family, and the way there and
back through a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Siglip2ImageProcessor, ViTConfig

from tests.support.vision_types import PLAIN, VISION_TYPES
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.families import FAMILIES, inner_module
from vlkd_cli.builders.huggingface.image import HuggingFaceImage, patchified
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.towers.freezing import layer_index
from vlkd_cli.towers.own_pixels import check_pixels

pytestmark = pytest.mark.filterwarnings("ignore")
CLASS_TOKEN = {
    "deit": 2,
    "dinov2": 1,
    "dinov2_with_registers": 4,
    "dinov3_vit": 3,
    "vit": 1,
    "vit_mae": 1,
    "vit_msn": 1,
}
"""Types whose feature is the class token, and how many tokens come before the places."""
MEANS = {
    "cvt": 0,
    "data2vec-vision": 1,
    "ijepa": 0,
    "poolformer": 0,
    "pvt_v2": 0,
    "segformer": 0,
    "swiftformer": 0,
}
"""Types whose feature is the mean of the places."""


def build(kind: str, **keys: Any) -> HuggingFaceImage:
    torch.manual_seed(0)
    backbone = HuggingFace(config={"type": kind, **VISION_TYPES[kind]}, **keys).build("image")
    assert isinstance(backbone, HuggingFaceImage)
    return backbone.eval()


def pictures(backbone: HuggingFaceImage, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, *backbone.input.size_px, generator=generator)


def expected(kind: str, output: Any) -> Tensor:
    states = output.last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    if kind in CLASS_TOKEN:
        return states[:, 0]
    if kind in MEANS:
        return states[:, MEANS[kind] :].mean(1)
    return output.pooler_output.flatten(1)


def test_every_listed_family_is_tested_here() -> None:
    # Halves of dual encoders, tested in test_dual.py.
    halves = {
        "align_vision_model",
        "altclip_vision_model",
        "clipseg_vision_model",
        "metaclip_2_vision_model",
    }
    assert set(FAMILIES) - halves == set(VISION_TYPES)
    assert len(VISION_TYPES) == 35


@torch.no_grad()
@pytest.mark.parametrize("kind", VISION_TYPES)
def test_feature_and_tokens_are_the_librarys_own_also_after_an_export(
    kind: str, tmp_path: Path
) -> None:
    backbone = build(kind)
    check_pixels(backbone, kind)
    images = pictures(backbone)
    encoded = backbone(images)
    assert encoded.feature.shape == (2, backbone.width)
    assert encoded.tokens.values.shape[2] == backbone.token_width
    backbone.export(tmp_path, tmp_path, {})
    reference = AutoModel.from_pretrained(tmp_path).eval()
    given: dict[str, Any] = {"pixel_values": images}
    if kind == "siglip2_vision_model":
        given = patchified(images, 8)
    if kind == "vit_mae":
        given["noise"] = torch.arange(16.0).expand(2, -1)
    output = reference(**given)
    torch.testing.assert_close(encoded.feature, expected(kind, output), rtol=0, atol=1e-5)
    states = output.last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    if kind.endswith("clip_vision_model"):
        states = inner_module(reference, "vision_model.post_layernorm")(states)
    torch.testing.assert_close(encoded.tokens.values, states, rtol=0, atol=1e-5)
    again = HuggingFace(model=str(tmp_path)).build("image").eval()
    assert again.input == backbone.input
    torch.testing.assert_close(again(images).feature, encoded.feature, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", VISION_TYPES)
def test_all_that_is_trainable_gets_a_gradient_and_ends_lie_in_the_outer_layers(kind: str) -> None:
    backbone = build(kind).train()
    encoded = backbone(pictures(backbone, 4))
    (encoded.feature.square().sum() + encoded.tokens.values.square().sum()).backward()
    waiting = [
        name
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert waiting == []
    layers = layer_index(backbone)
    last = max(layers.values())
    assert last >= 1 and len(backbone.layers()) == last + 1
    first = ("cls_token", "class_embedding", "mask_token", "position", "patch_embed", "register")
    ends = ("layernorm", "post_layernorm", "norm", "layer_norm", "pooler", "head")
    for name, layer in layers.items():
        parts = name.removeprefix("vision_model.").split(".")
        if kind in CLASS_TOKEN and parts[0] == "embeddings" and parts[1].startswith(first):
            assert layer == 0, name
        if parts[0] in ends:
            assert layer == last, name


@torch.no_grad()
def test_a_masked_autoencoder_sees_all_of_a_picture_in_its_own_order() -> None:
    backbone = build("vit_mae")
    images = pictures(backbone)
    tokens = backbone(images).tokens
    assert tokens.values.shape[1] - tokens.prefix == 16
    assert tokens.values.equal(backbone(images).tokens.values)
    changed = images.clone()
    changed[:, :, :8, :8] += 1
    shifts = (backbone(changed).tokens.values - tokens.values)[:, 1:].norm(dim=-1)
    assert (shifts.argmax(1) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "clip_vision_model", "siglip_vision_model", "dinov2"])
def test_another_image_size_interpolates_the_positions(kind: str, tmp_path: Path) -> None:
    build(kind).export(tmp_path, tmp_path, {})
    backbone = HuggingFace(model=str(tmp_path), image_size=64).build("image").eval()
    assert backbone.input.size_px == (64, 64)
    images = pictures(backbone)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    output = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=images, **options)
    torch.testing.assert_close(backbone(images).feature, expected(kind, output))
    assert backbone.grid((64, 64)).num_places == 64
    small = tmp_path / "small"
    small.mkdir()
    backbone.export(small, small, {})
    assert HuggingFace(model=str(small)).build("image").input == backbone.input


def test_an_encoder_of_one_size_refuses_another_in_one_line(tmp_path: Path) -> None:
    build("aimv2_vision_model").export(tmp_path, tmp_path, {})
    with pytest.raises(RecipeError, match="does not encode RGB images of 64 x 64 pixels") as error:
        HuggingFace(model=str(tmp_path), image_size=64).build("image")
    assert "\n" not in str(error.value)


def test_image_size_sizes_an_encoder_from_scratch() -> None:
    backbone = HuggingFace(config={**PLAIN, "image_size": 32}, image_size=48).build("image")
    assert backbone.config.image_size == 48 and backbone.grid((48, 48)).num_places == 36


def test_own_pooler_is_read_and_must_have_weights(tmp_path: Path) -> None:
    backbone = build("vit", own_pooler=True)
    images = pictures(backbone)
    backbone.export(tmp_path, tmp_path, {})
    output = AutoModel.from_pretrained(tmp_path).eval()(pixel_values=images)
    torch.testing.assert_close(backbone(images).feature, output.pooler_output)
    plain = tmp_path / "plain"
    plain.mkdir()
    build("vit").export(plain, plain, {})
    with pytest.raises(WeightsError, match="'pooler.dense.bias'.* is not in them"):
        HuggingFace(model=str(plain), own_pooler=True).build("image")
    with pytest.raises(RecipeError, match="no pooler of its own"):
        build("vit_msn", own_pooler=True)


def test_siglip2_patches_are_those_of_its_processor() -> None:
    processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    picture = torch.randint(
        0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    theirs = processor(picture.numpy(), return_tensors="pt")
    ours = patchified(picture.permute(2, 0, 1)[None] / 127.5 - 1, 8)
    torch.testing.assert_close(ours["pixel_values"], theirs["pixel_values"])
    assert ours["spatial_shapes"].tolist() == theirs["spatial_shapes"].tolist() == [[4, 4]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vit", "dinov2_with_registers", "clip_vision_model"])
def test_dropped_places_are_not_encoded(kind: str) -> None:
    backbone = build(kind)
    assert backbone.hides == {"drop", "replace", "complement"}
    images = pictures(backbone)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, :4] = True
    changed = images.clone()
    changed[:, :, :8] += 1  # the first row of places
    dropped = backbone(images, hidden, "drop")
    assert dropped.tokens.values.shape[1] - dropped.tokens.prefix == 12
    torch.testing.assert_close(backbone(changed, hidden, "drop").feature, dropped.feature)
    assert not torch.allclose(backbone(changed).feature, backbone(images).feature)


def test_encoders_of_texts_take_no_pictures() -> None:
    with pytest.raises(RecipeError, match="'bert' take no pictures.*modality: text"):
        HuggingFace(config={"type": "bert", "layers": 1, "width": 8, "heads": 1}).build("image")
    with pytest.raises(RecipeError, match="have stages. Set `depths`"):
        HuggingFace(config={"type": "swin", "layers": 2}).build("image")


def test_sizes_of_a_staged_network_follow_each_other() -> None:
    keys = {**VISION_TYPES["swin"], "type": "swin", "embed_dim": 12}
    assert HuggingFace(config=keys).build("image").width == 24


def test_fewer_layers_keep_the_first_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**PLAIN)).save_pretrained(tmp_path)
    short = HuggingFace(model=str(tmp_path), config={"layers": 1}).build("image")
    whole = HuggingFace(model=str(tmp_path)).build("image")
    own = whole.state_dict()
    assert len(own) > len(short.state_dict()) > len(own) / 2
    assert all(tensor.equal(own[name]) for name, tensor in short.state_dict().items())
