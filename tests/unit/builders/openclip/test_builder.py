from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from vlkd_cli.builders.openclip.builder import OpenCLIP
from vlkd_cli.builders.openclip.config import find_source
from vlkd_cli.builders.tokenizers import ClipTokenizer
from vlkd_cli.errors import RecipeError, WeightsError

VISION = {"layers": 2, "width": 64, "head_width": 32, "image_size": 32, "patch_size": 16}
TEXT = {"layers": 2, "width": 64, "heads": 2, "context_length": 24, "vocab_size": 49408}
CAPTIONS = ["a dog", "two small children play with a red ball in the snow", "a cat sits"]


def whole_model(**keys: Any) -> Any:
    torch.manual_seed(0)
    return open_clip.model.CLIP(48, dict(VISION), dict(TEXT), **keys).eval()


def overrides(modality: str) -> dict[str, Any]:
    if modality == "text":
        return {**TEXT, "embed_dim": 48}
    return {
        "layers": 2,
        "width": 64,
        "heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "embed_dim": 48,
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("openclip") / "model.pt"
    torch.save(
        {
            "state_dict": {
                f"module.{name}": tensor for name, tensor in whole_model().state_dict().items()
            }
        },
        file,
    )
    return file


def test_each_half_of_a_checkpoint_gives_the_whole_models_features(checkpoint: Path) -> None:
    whole = whole_model()
    images = torch.randn(3, 3, 32, 32)
    image = OpenCLIP(pretrained=str(checkpoint), config=overrides("image")).build("image").eval()
    text = OpenCLIP(pretrained=str(checkpoint), config=overrides("text")).build("text").eval()
    with torch.no_grad():
        torch.testing.assert_close(image(images).feature, whole.encode_image(images))
        padded = ClipTokenizer(context_length=24, trim=False)(CAPTIONS)["input_ids"]
        torch.testing.assert_close(
            text(text.input(CAPTIONS)).feature, whole.encode_text(padded), rtol=1e-5, atol=1e-6
        )
    assert not any(
        name.startswith(("encoder.token_embedding", "encoder.text")) for name in image.state_dict()
    )
    assert (image.width, text.width, image.token_width, text.token_width) == (48, 48, 64, 64)


def test_captions_are_cut_to_the_longest_of_the_batch_without_changing_values_or_gradients(
    checkpoint: Path,
) -> None:
    text = OpenCLIP(pretrained=str(checkpoint), config=overrides("text")).build("text")
    trimmed = text.input(CAPTIONS)
    padded = ClipTokenizer(context_length=24, trim=False)(CAPTIONS)
    assert trimmed["input_ids"].shape == (3, 13) and padded["input_ids"].shape == (3, 24)
    features, gradients = zip(
        *(_features_and_gradients(text, inputs) for inputs in (trimmed, padded)), strict=True
    )
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-6)
    for name in gradients[0]:
        torch.testing.assert_close(
            gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6, msg=name
        )


def _features_and_gradients(
    text: Any, inputs: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    text.zero_grad()
    features = text(inputs).feature
    features.square().mean().backward()
    return features.detach(), {
        name: parameter.grad.clone() for name, parameter in text.named_parameters()
    }


def test_a_tower_that_looks_ahead_is_never_cut() -> None:
    text = OpenCLIP(
        config={**overrides("text"), "no_causal_mask": True, "pool_type": "last"}
    ).build("text")
    assert text.input(["a dog"])["input_ids"].shape == (1, 24)
    assert text(text.input(["a dog"])).feature.shape == (1, 48)
    assert text(text.input(["a dog"])).tokens.values.shape == (1, 24, 64)


def test_tokens_of_a_text_end_at_the_end_token(checkpoint: Path) -> None:
    text = OpenCLIP(pretrained=str(checkpoint), config=overrides("text")).build("text").eval()
    tokens = text(text.input(CAPTIONS)).tokens
    assert tokens.mask.sum(1).tolist() == [4, 13, 5]
    assert tokens.eot is not None and tokens.eot.tolist() == [3, 12, 4]
    picked = tokens.values[torch.arange(3), tokens.eot] @ text.encoder.text_projection
    torch.testing.assert_close(picked, text(text.input(CAPTIONS)).feature)


def test_tokens_of_an_image_begin_with_the_class_token(checkpoint: Path) -> None:
    image = OpenCLIP(pretrained=str(checkpoint), config=overrides("image")).build("image").eval()
    images = torch.randn(2, 3, 32, 32)
    tokens = image(images).tokens
    assert tokens.values.shape == (2, 5, 64)
    torch.testing.assert_close(tokens.values[:, 0] @ image.encoder.proj, image(images).feature)


def test_a_list_of_layers_makes_a_resnet() -> None:
    image = OpenCLIP(
        config={"layers": [1, 1, 1, 1], "width": 8, "heads": 8, "image_size": 64, "embed_dim": 16}
    ).build("image")
    assert image(torch.randn(2, 3, 64, 64)).feature.shape == (2, 16)
    assert image(torch.randn(2, 3, 64, 64)).tokens.values.shape == (2, 4, 256)
    assert image.layers()[-1] == ["layer4.0", "attnpool"]


def test_the_last_layer_holds_what_follows_it() -> None:
    assert OpenCLIP(config=overrides("image")).build("image").layers() == [
        ["transformer.resblocks.0"],
        ["transformer.resblocks.1", "ln_post", "proj"],
    ]
    assert OpenCLIP(config=overrides("text")).build("text").layers()[-1] == [
        "transformer.resblocks.1",
        "ln_final",
        "text_projection",
    ]


def test_sizes_from_scratch_need_no_more_than_three_numbers() -> None:
    image = OpenCLIP(config={"layers": 1, "width": 32, "heads": 4}).build("image")
    assert image.width == 32 and image.encoder.transformer.resblocks[0].attn.num_heads == 4
    text = OpenCLIP(config={"layers": 1, "width": 32, "heads": 4, "vocab_size": 1000}).build("text")
    assert text.encoder.token_embedding.num_embeddings == 1000
    ids = text.input(["an unusual antidisestablishmentarianism", "<end_of_text>"])["input_ids"]
    assert int(ids.max()) == 999 and text(text.input(["a dog"])).feature.shape == (1, 32)


def test_sizes_next_to_a_name_change_that_model() -> None:
    image = OpenCLIP(model="ViT-B-32", config={"layers": 1, "image_size": 64}).build("image")
    assert image.width == 512 and image.input.size_px == (64, 64)
    assert len(image.encoder.transformer.resblocks) == 1


def test_positions_are_resized_to_another_image_size(checkpoint: Path) -> None:
    image = OpenCLIP(
        pretrained=str(checkpoint), config={**overrides("image"), "image_size": 64}
    ).build("image")
    assert image(torch.randn(1, 3, 64, 64)).feature.shape == (1, 48)
    assert image.encoder.positional_embedding[0].equal(whole_model().visual.positional_embedding[0])


def test_weights_run_with_the_activation_of_their_tag(tmp_path: Path) -> None:
    folder = tmp_path / "openclip"
    folder.mkdir()
    (folder / "RN50-openai.safetensors").touch()
    source = find_source("RN50", True, {}, "image", str(tmp_path))
    assert source.quick_gelu and source.weights == folder / "RN50-openai.safetensors"
    assert not find_source("RN50", False, {}, "image", None).quick_gelu
    (folder / "ViT-B-32-laion2b_s34b_b79k.bin").touch()
    assert not find_source("ViT-B-32", "laion2b_s34b_b79k", {}, "image", str(tmp_path)).quick_gelu


def test_a_folder_of_open_clip_is_a_model(tmp_path: Path) -> None:
    settings = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
    content = {
        "model_cfg": settings,
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "resize_mode": "squash",
        },
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    torch.save(whole_model().state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    image = OpenCLIP(model=str(tmp_path), pretrained=True).build("image").eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(image(images).feature, whole_model().encode_image(images))
    assert image.input.mean == (0.5, 0.5, 0.5) and image.input.resize == "squash"


def test_mistakes_are_named_with_their_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    for builder, message in [
        (OpenCLIP(), "set `model: NAME` or `config:"),
        (OpenCLIP(model="RN51"), r"'RN51' is unknown\. Did you mean 'RN50'\?"),
        (
            OpenCLIP(model="RN50", pretrained="opneai"),
            r"no weights 'opneai'\. Did you mean 'openai'\? Known: openai",
        ),
        (
            OpenCLIP(model="RN50", config={"witdh": 3}),
            r"config has no key 'witdh' for image towers\. Did you mean 'width'\?",
        ),
        (OpenCLIP(config={"layers": 1, "width": 32, "heads": 5}), "5 heads do not divide width 32"),
        (OpenCLIP(pretrained=True, config={"layers": 1}), "`pretrained: true` needs a `model`"),
    ]:
        with pytest.raises(RecipeError, match=message):
            builder.build("image")
    with pytest.raises(
        WeightsError, match=r"'class_embedding' is \[64\] in them and \[768\] in the model"
    ):
        OpenCLIP(
            model="ViT-B-32", pretrained=str(checkpoint), config={"layers": 1, "image_size": 64}
        ).build("image")


def test_weights_that_cannot_be_fetched_name_the_file_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*arguments: object, **keys: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", no_network)
    expected = (
        r"'RN50', tag 'openai': weights are not on disk.* as RN50-openai\.safetensors \(or \.pt,"
        rf" \.bin\) into {tmp_path}/openclip\."
    )
    with pytest.raises(WeightsError, match=expected):
        OpenCLIP(model="RN50", pretrained=True, cache_dir=str(tmp_path)).build("text")


def test_every_model_is_listed_for_both_modalities_without_building_any() -> None:
    rows = OpenCLIP.list_models()
    assert len(rows) == 2 * len(open_clip.list_models()) >= 200
    row = next(row for row in rows if row.name == "RN50" and row.modality == "image")
    assert (row.width, row.image_size_px) == (1024, 224) and "openai" in row.pretrained


TRUNK = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "embed_dim": 16}


def test_a_trunk_of_timm_takes_another_image_size_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    native = OpenCLIP(config={**TRUNK, "image_size": 160}).build("image").eval()
    torch.save(native.encoder.state_dict(), tmp_path / "native.pt")
    small = {**TRUNK, "image_size": 64}
    loaded = OpenCLIP(config=small, pretrained=str(tmp_path / "native.pt")).build("image").eval()
    assert loaded.input.size_px == (64, 64)
    native.encoder.trunk.set_input_size(img_size=(64, 64))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).feature, native.encoder(images))
    torch.save(loaded.encoder.state_dict(), tmp_path / "small.pt")
    again = OpenCLIP(config=small, pretrained=str(tmp_path / "small.pt")).build("image").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images).feature, loaded(images).feature)


def test_a_siglip_tower_is_built_for_another_image_size() -> None:
    backbone = OpenCLIP(model="ViT-B-16-SigLIP", config={"image_size": 32}).build("image")
    assert backbone.encoder.trunk.pos_embed.shape[1] == 4
    assert backbone(torch.zeros(1, 3, 32, 32)).feature.shape == (1, backbone.width)


@pytest.mark.parametrize(
    ("modality", "config", "reason"),
    [
        ("image", {"image_size": 8}, "images of 8 x 8 pixels"),
        ("image", {"image_size": 0}, r"config\.image_size: expected an integer above 0"),
        ("image", {"heads": -1}, r"config\.heads: expected an integer above 0"),
        ("image", {"pool_type": "no_such"}, "openclip model 'from scratch': "),
        ("image", {"act_kwargs": 3}, "openclip model 'from scratch': TypeError"),
        ("image", {"timm_model_name": "no_such"}, "no_such"),
        ("image", {"output_tokens": True}, r"config\.output_tokens"),
        ("text", {"context_length": 2}, r"config\.context_length: 2 leaves no room"),
        ("text", {"context_length": -1}, r"config\.context_length: expected an integer above 0"),
        ("text", {"width": "wide"}, r"config\.width: expected an integer above 0"),
        ("text", {"pool_type": "no_such"}, "openclip model 'from scratch': "),
        ("text", {"hf_tokenizer_name": "org/name"}, r"config\.hf_tokenizer_name"),
        ("text", {"tokenizer_kwargs": {"trust_remote_code": True}}, r"config\.tokenizer_kwargs"),
    ],
)
def test_what_a_tower_cannot_have_is_one_line_at_build(
    modality: Any, config: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason) as error:
        OpenCLIP(config={**overrides(modality), **config}).build(modality)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("open_clip_config.json", "", "is empty"),
        ("open_clip_config.json", "{", "cannot be read"),
        ("open_clip_config.json", "[1]", "is not a configuration of open_clip"),
        ("open_clip_config.json", "[" * 5000, "cannot be read"),
        ("config.json", '{"auto_map": {"AutoModel": "x"}}', "runs code of the model's author"),
        ("tokenizer_config.json", '{"auto_map": {"a": "x"}}', "runs code of the model's author"),
    ],
)
def test_a_folder_that_is_damaged_or_runs_code_is_one_line(
    file: str, content: str, reason: str, tmp_path: Path
) -> None:
    model = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    assert OpenCLIP(model=str(tmp_path)).build("text").width == 48
    (tmp_path / file).write_text(content)
    with pytest.raises((RecipeError, WeightsError), match=reason) as error:
        OpenCLIP(model=str(tmp_path)).build("text")
    assert "\n" not in str(error.value)


def test_a_folder_whose_tokenizer_would_run_code_is_refused(tmp_path: Path) -> None:
    text = {**TEXT, "hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}
    model = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(RecipeError, match="`trust_remote_code`, which runs code"):
        OpenCLIP(model=str(tmp_path)).build("text")


@pytest.mark.parametrize("mean", ["bright", [0.5], [0.5, 0.5, "x"], 3])
def test_a_preprocessing_without_numbers_is_one_line(mean: Any, tmp_path: Path) -> None:
    model = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
    content = {"model_cfg": model, "preprocess_cfg": {"mean": mean}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="Correct its preprocess_cfg"):
        OpenCLIP(model=str(tmp_path)).build("image")
