"""The size of cached tokens is that of the tower which would be built, known without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPConfig, ViTConfig

from tests.support.vision_types import DINO
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.recipe.token_sizes import size_of_tokens
from vlkd_cli.towers.assemble import assemble


def size_of(**section: Any) -> str | None:
    return size_of_tokens(TowerSpec.model_validate(section))


@pytest.mark.parametrize(
    "section",
    [
        {"builder": "timm", "model": "vit_tiny_patch16_224", "config": {"depth": 1}},
        {
            "builder": "timm",
            "model": "deit_small_patch16_224",
            "image_size": 64,
            "config": {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
        },
        {
            "builder": "openclip",
            "config": {"layers": 1, "width": 24, "heads": 2, "image_size": 40, "patch_size": 8},
        },
        {"builder": "openclip", "model": "ViT-S-32-alt", "pretrained": False},
        {"builder": "huggingface", "config": {"layers": 1, "width": 16, "heads": 2}},
        {"builder": "huggingface", "config": {"type": "dinov2", **DINO}, "image_size": 48},
    ],
    ids=lambda section: str(section)[:60],
)
def test_it_is_that_of_the_tower(section: dict[str, Any]) -> None:
    backbone = assemble("image", TowerSpec.model_validate(section)).encoder
    grid = backbone.grid(backbone.input.size_px)  # type: ignore[union-attr]
    assert grid is not None and backbone.token_width is not None
    values = grid.num_places * backbone.token_width
    found = size_of(**section)
    assert found is not None
    assert found.startswith(f"{grid.num_places:,} patches of {backbone.token_width:,} values")
    assert found.endswith(f"{values * 4 / 1000:.3g} kB an image")


def test_a_model_on_disk_and_weights_of_published_names_are_read_by_name(tmp_path: Path) -> None:
    ViTConfig(image_size=64, patch_size=16, hidden_size=32).save_pretrained(tmp_path)
    assert size_of(builder="huggingface", model=str(tmp_path)) == (
        "16 patches of 32 values, 2.05 kB an image"
    )
    CLIPConfig().save_pretrained(tmp_path)
    base = "49 patches of 768 values, 151 kB an image"
    assert size_of(builder="huggingface", model=str(tmp_path)) == base
    assert size_of(builder="openclip", model="ViT-B-32") == base
    assert size_of(builder="torchvision", model="vit_b_32") == base
    large = "1,024 patches of 1,024 values, 4.19 MB an image"
    assert size_of(builder="timm", model="vit_large_patch16_siglip_512.webli") == large


@pytest.mark.parametrize(
    "section",
    [
        {"builder": "openclip", "model": "RN50"},
        {"builder": "openclip", "model": "hf-hub:somebody/model"},
        {"builder": "timm", "model": "swin_tiny_patch4_window7_224"},
        {"builder": "torchvision", "model": "resnet18"},
        {"builder": "torchvision", "model": "vit_b_16", "pretrained": "IMAGENET1K_SWAG_E2E_V1"},
        {"builder": "huggingface", "config": {"type": "swin"}},
        {"builder": "huggingface", "model": "somebody/unknown"},
        {"run": "runs/a"},
    ],
    ids=str,
)
def test_what_is_not_known_is_left_out(section: dict[str, Any]) -> None:
    assert size_of(**section) is None
