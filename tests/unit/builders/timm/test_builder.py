from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from vlkd_cli.builders.timm.builder import Timm
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.numerics.positions import sine_cosine


@pytest.mark.parametrize(
    "name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050", "convnext_atto"]
)
def test_the_feature_is_what_the_classifier_reads(name: str) -> None:
    torch.manual_seed(0)
    backbone = Timm(model=name, image_size=64).build("image").eval()
    images = torch.randn(2, 3, 64, 64)
    features = backbone(images).feature
    assert features.shape == (2, backbone.width)
    tokens = backbone(images).tokens
    assert tokens.values.shape[::2] == (2, backbone.token_width) and tokens.mask.all()
    assert len(backbone.layers()) > 1


def test_mean_pooled_places_are_the_feature_of_a_plain_resnet() -> None:
    torch.manual_seed(0)
    backbone = Timm(model="resnet10t", image_size=64).build("image").eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(images).tokens.values.mean(1), backbone(images).feature)


def test_a_file_of_weights_is_loaded_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("resnet10t").eval()
    save_file(whole.state_dict(), tmp_path / "a.safetensors")
    backbone = (
        Timm(model="resnet10t", pretrained=str(tmp_path / "a.safetensors"), image_size=64)
        .build("image")
        .eval()
    )
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole.fc(backbone(images).feature), whole(images))
    with pytest.raises(WeightsError, match=r"'resnet18': weights of .* do not fit"):
        Timm(model="resnet18", pretrained=str(tmp_path / "a.safetensors")).build("image")


def test_mistakes_and_missing_weights_are_named_with_their_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        RecipeError, match=r"'convnext_attoo' is unknown\. Did you mean 'convnext_atto'\?"
    ):
        Timm(model="convnext_attoo").build("image")
    with pytest.raises(RecipeError, match=r"no weights 'c3_in1kk'\. Did you mean 'c3_in1k'\?"):
        Timm(model="resnet10t", pretrained="c3_in1kk").build("image")
    if timm.is_model("qwen3_vit_88m_enc"):  # not in older versions
        with pytest.raises(RecipeError, match=r"gives a map and no feature of the whole image"):
            Timm(model="qwen3_vit_88m_enc").build("image")
    with pytest.raises(
        WeightsError,
        match=(
            rf"'resnet10t\.c3_in1k'.* as resnet10t\.c3_in1k\.safetensors .* into {tmp_path}/timm\."
        ),
    ):
        Timm(model="resnet10t", pretrained="c3_in1k", cache_dir=str(tmp_path)).build("image")


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"config": {"in_chans": 1}}, r"config\.in_chans: towers take RGB images"),
        ({"config": {"features_only": True}}, r"config\.features_only"),
        ({"config": {"num_classes": 10}}, r"config\.num_classes: towers have no classifier"),
        ({"config": {"img_size": 32}}, r"config\.img_size: set `image_size`"),
        ({"config": {"pretrained": True}}, r"config\.pretrained"),
        ({"config": {"checkpoint_path": "a.pth"}}, r"config\.checkpoint_path"),
        ({"config": {"global_pool": ""}}, "not one feature"),
        ({"config": {"act_layer": "no_such"}}, "no_such"),
        ({"config": {"no_such": 1}}, "no_such"),
        ({"image_size": 8}, "does not encode RGB images of 8 x 8 pixels"),
    ],
)
def test_what_a_tower_cannot_have_is_one_line_at_build(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"^timm model 'test_vit': .*{reason}") as error:
        Timm(model="test_vit", **{"image_size": 64, **keys}).build("image")
    assert "\n" not in str(error.value)


def test_wrapped_and_damaged_weights_of_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = Timm(model="test_vit").build("image").encoder
    state = {f"model._orig_mod.{name}": value for name, value in own.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.scale": torch.ones(1)}}, tmp_path / "a.ckpt.pth")
    loaded = Timm(model="test_vit", pretrained=str(tmp_path / "a.ckpt.pth")).build("image").encoder
    assert all(value.equal(own.state_dict()[name]) for name, value in loaded.state_dict().items())
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(WeightsError, match="'test_vit.*a.npz") as error:
        Timm(model="test_vit", pretrained=str(tmp_path / "a.npz")).build("image")
    assert "\n" not in str(error.value)


VIT = {"depth": 1, "embed_dim": 32, "num_heads": 2}


def test_sine_cosine_positions_are_fixed_and_zero_for_the_class_token(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model": "vit_tiny_patch16_224", "image_size": 64, "config": VIT}
    backbone = Timm(**keys, positions="sincos").build("image")
    table: Any = backbone.encoder.pos_embed  # type: ignore[union-attr]
    assert not table.requires_grad and table[0, 0].eq(0).all()
    torch.testing.assert_close(table[0, 1:], sine_cosine(32, 4, 4))
    assert backbone.settings != Timm(**keys).build("image").settings
    how = backbone.export(tmp_path, tmp_path, {**keys, "positions": "sincos"})
    assert how.recipe["positions"] == "sincos"
    again = {key: value for key, value in how.recipe.items() if key != "builder"}
    assert Timm(**again).build("image").encoder.pos_embed.equal(table)  # type: ignore[union-attr]


def test_positions_that_weights_were_trained_with_are_not_replaced(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model": "vit_tiny_patch16_224", "image_size": 64, "config": VIT}
    Timm(**keys).build("image").export(tmp_path, tmp_path, keys)
    trained = {**keys, "pretrained": str(tmp_path / "model.safetensors"), "positions": "sincos"}
    with pytest.raises(RecipeError, match="would replace the positions that its weights"):
        Timm(**trained).build("image")
    with pytest.raises(RecipeError, match="needs a vision transformer with learned positions"):
        Timm(model="resnet10t", positions="sincos").build("image")
