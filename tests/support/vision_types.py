"""Small configurations of transformers' vision encoders, by type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, ViTConfig

PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {key: value for key, value in PLAIN.items() if key != "intermediate_size"}
TWO_STAGES = {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 8, "image_size": 32}
PLAIN_TYPES = (
    "aimv2_vision_model",
    "beit",
    "chinese_clip_vision_model",
    "clip_vision_model",
    "data2vec-vision",
    "deit",
    "ijepa",
    "siglip_vision_model",
    "vit",
    "vit_mae",
    "vit_msn",
)
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
VISION_TYPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(PLAIN_TYPES, PLAIN),
    "bit": {"embedding_size": 8, **FOUR, "num_groups": 2},
    "convnext": {**FOUR, "num_stages": 4, "image_size": 32},
    "convnextv2": {**FOUR, "num_stages": 4, "image_size": 32},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
    "dinov2": DINO,
    "dinov2_with_registers": {**DINO, "num_register_tokens": 3},
    "dinov3_convnext": {**FOUR, "image_size": 32},
    "dinov3_vit": {**PLAIN, "num_register_tokens": 2},
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "image_size": 64,
        "hidden_dim": 320,
    },
    "focalnet": {
        "embed_dim": 8,
        "depths": [1, 1],
        "hidden_sizes": [8, 16],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "image_size": 32,
    },
    "hiera": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": [32, 32],
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "num_query_pool": 1,
    },
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16]},
    "poolformer": {**FOUR, "num_encoder_blocks": 4},
    "pvt_v2": {
        "image_size": 64,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "regnet": {"embedding_size": 8, **FOUR, "groups_width": 8},
    "resnet": {"embedding_size": 8, **FOUR},
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    },
    "siglip2_vision_model": {
        **{key: value for key, value in PLAIN.items() if key != "image_size"},
        "num_patches": 16,
    },
    "swiftformer": {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 64},
    "swin": {**TWO_STAGES, "window_size": 4, "patch_size": 4},
    "swinv2": {**TWO_STAGES, "window_size": 4, "patch_size": 4},
}


def write_vit(folder: Path) -> Path:
    """Save a small ViT without an image processor."""
    torch.manual_seed(0)
    AutoModel.from_config(ViTConfig(**PLAIN)).save_pretrained(folder)
    return folder
