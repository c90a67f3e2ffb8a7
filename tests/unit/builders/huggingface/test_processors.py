"""Pixels are those of the model's own image processor, whichever of its classes is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.support.vision_types import write_vit
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.builders.huggingface.configs import scratch_config
from vlkd_cli.builders.huggingface.processors import (
    at_size,
    backend_of,
    default_processor,
    read_processor,
)
from vlkd_cli.data.images.resize import fit
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import standardize

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = ((37, 53), (224, 227), (227, 224), (225, 300), (300, 451), (640, 223))
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("Beit", {}),
    ("Bit", {"size": {"shortest_edge": 256}}),
    ("ChineseCLIP", {"size": {"height": 224, "width": 224}, "do_center_crop": False}),
    ("CLIP", {}),
    ("CLIP", {"do_normalize": False, "size": {"shortest_edge": 240}}),
    ("CLIP", {"do_resize": False}),
    ("CLIP", {"do_rescale": False, "image_mean": [100] * 3, "image_std": [50, 60, 70]}),
    ("ConvNext", {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ("ConvNext", {"size": {"shortest_edge": 384}}),
    ("DeiT", {}),
    ("DINOv3ViT", {}),
    ("EfficientNet", {}),
    ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False}),
    ("Levit", {}),
    ("MobileNetV2", {}),
    ("MobileViT", {}),
    ("MobileViT", {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
    ("PoolFormer", {"crop_pct": 0.95}),
    ("Pvt", {}),
    ("Segformer", {}),
    ("Siglip", {}),
    # Keys that its class stores and does not obey.
    ("Siglip", {"rescale_offset": True, "include_top": True, "do_flip_channel_order": True}),
    # Its slow class does not crop whatever its keys are.
    ("ViT", {"do_center_crop": True, "crop_size": {"height": 200, "width": 208}}),
    ("ViT", {"size": {"height": 224, "width": 160}}),
    ("ViT", {"resample": 3}),
]


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
@pytest.mark.parametrize(("name", "keys"), PROCESSORS, ids=lambda part: str(part)[:40])
def test_pixels_equal_the_processors(name: str, keys: dict[str, Any], suffix: str) -> None:
    made = getattr(transformers, f"{name}ImageProcessor{suffix}", None)
    if made is None:
        pytest.skip(f"this version of transformers has no {name}ImageProcessor{suffix}")
    processor = made(**keys)
    expected = read_processor(processor, "model")
    if suffix:
        assert backend_of(processor) == ("torchvision" if suffix == "Fast" else "pil")
    for number, (height, width) in enumerate(SIZES):
        generator = np.random.default_rng(number)
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        given = processor(picture, return_tensors="pt", input_data_format="channels_last")
        ours = standardize(fit(picture, expected)[None], expected)
        theirs = given["pixel_values"]
        # Values of up to 255 where nothing is rescaled.
        scale = max(1.0, float(theirs.abs().max()) / 4)
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-6 * scale)


def test_a_center_crop_starts_where_the_processor_starts() -> None:
    # 227 - 224 is 3: torchvision would start at row 2.
    picture = np.zeros((227, 224, 3), dtype=np.uint8)
    picture[1] = 255
    expected = read_processor(transformers.CLIPImageProcessor(), "model")
    assert bool((fit(picture, expected)[:, 0] == 255).all())


def test_floats_are_delivered_where_floats_are_resized() -> None:
    processor = transformers.DINOv3ViTImageProcessorFast(size={"height": 32, "width": 32})
    expected = read_processor(processor, "model")
    picture = np.random.default_rng(0).integers(0, 256, (45, 67, 3), dtype=np.uint8)
    view = MODALITIES["image"].view(expected, None, None)
    assert view.empty(2).dtype == torch.float32  # type: ignore[attr-defined]
    loaded = MODALITIES["image"].load([picture], expected)
    prepared = MODALITIES["image"].prepare(loaded, expected)
    theirs = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, theirs, rtol=0, atol=1e-6)


def test_what_vlkd_lacks_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="resizes by 'lanczos'"):
        read_processor(transformers.ViTImageProcessor(resample=1), "model 'x'")
    for keys in ({"do_center_crop": False}, {"do_center_crop": False, "do_resize": False}):
        with pytest.raises(RecipeError, match="model 'x': .* pictures of different sizes"):
            read_processor(transformers.CLIPImageProcessor(**keys), "model 'x'")
    for keys in ({"keep_aspect_ratio": True}, {"ensure_multiple_of": 10}):
        with pytest.raises(RecipeError, match=rf"has {next(iter(keys))}: \w+, which vlkd does not"):
            read_processor(transformers.DPTImageProcessor(**keys), "model 'x'")
    with pytest.raises(RecipeError, match="has do_thumbnail: True"):
        read_processor(transformers.DonutImageProcessor(do_pad=False), "model 'x'")
    with pytest.raises(RecipeError, match=r"\(Owlv2ImageProcessor\) pads pictures of different"):
        read_processor(transformers.Owlv2ImageProcessor(), "model 'x'")


@pytest.mark.parametrize(
    ("kind", "size", "resize"),
    [
        ("vit", 48, "squash"),
        ("dinov2", 48, "shortest"),
        ("clip_vision_model", 48, "shortest"),
        ("swin", 48, "squash"),
        ("dinov3_vit", 48, "squash"),
        ("aimv2_vision_model", 48, "shortest"),
    ],
)
def test_a_type_has_its_own_default_at_the_size_of_its_pictures(
    kind: str, size: int, resize: str
) -> None:
    config = scratch_config({"type": kind, "image_size": size}, section="vision_config")
    expected = read_processor(default_processor(config), "model")
    assert (expected.size_px, expected.resize) == ((size, size), resize)


def test_another_size_scales_the_resize_too() -> None:
    processor = transformers.BitImageProcessor(size={"shortest_edge": 256})
    expected = read_processor(at_size(processor, 112), "model")
    assert (expected.size_px, expected.resize_px) == ((112, 112), 128)
    assert read_processor(processor, "model").at_size(112) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit(tmp_path_factory.mktemp("vit"))


def test_a_model_without_a_processor_takes_its_types_with_a_notice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = HuggingFace(model=str(folder)).build("image")
    assert backbone.input.size_px == (32, 32)
    assert "has no preprocessor_config.json" in capsys.readouterr().err


def test_foreign_code_of_a_processor_is_refused(folder: Path) -> None:
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({"auto_map": {"AutoImageProcessor": "x.Y"}, "size": 3}))
    try:
        with pytest.raises(RecipeError, match="'auto_map', which runs code.*trust: true"):
            HuggingFace(model=str(folder)).build("image")
    finally:
        file.unlink()


@pytest.mark.parametrize("content", ["{", '{"image_processor_type": "Nothing", "size": 3}'])
def test_a_damaged_processor_is_one_line(folder: Path, content: str) -> None:
    from vlkd_cli.errors import UserError

    file = folder / "preprocessor_config.json"
    file.write_text(content)
    try:
        with pytest.raises(UserError) as error:
            HuggingFace(model=str(folder)).build("image")
        assert "\n" not in str(error.value)
    finally:
        file.unlink()
