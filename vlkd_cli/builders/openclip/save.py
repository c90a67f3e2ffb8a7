"""Towers of open_clip as a folder that open_clip loads without vlkd."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.builders.openclip.config import CONFIG_FILE, Source
from vlkd_cli.builders.tokenizers import PaddedTokenizer
from vlkd_cli.builders.weights import write_weights

WEIGHTS = "open_clip_model.safetensors"
PROMPT = "prompt.safetensors"
CLIP_SCALE = 1 / 0.07
"""The factor on cosines that CLIP starts from."""


def save_half(
    half: str,
    source: Source,
    state: Mapping[str, Tensor],
    folder: Path,
    destination: Path,
    *,
    preprocessing: Mapping[str, object],
) -> Export:
    """Write a folder for open_clip's `local-dir:`. Both halves of the model are described; the
    weights are of one, under its own names.

    Args:
        half: what open_clip calls it: visual or text.
        destination: where the folder will be when it is done.
        preprocessing: of images, in open_clip's words.
    """
    model = {
        "embed_dim": source.embed_dim,
        "vision_cfg": source.vision,
        "text_cfg": source.text,
        "quick_gelu": source.quick_gelu,
    }
    _write_config(model, preprocessing, folder)
    write_weights(state, folder / WEIGHTS)
    option = "pretrained_image_path" if half == "visual" else "pretrained_text_path"
    return Export(
        "open_clip",
        python=(
            f"model = open_clip.create_model({f'local-dir:{destination}'!r}, load_weights=False,"
            f" {option}={str(destination / WEIGHTS)!r}).{half}"
        ),
        recipe={"builder": "openclip", "model": str(destination), "pretrained": True},
        feature="model(images)" if half == "visual" else "model(tokens)",
    )


def save_whole(
    image: Any,
    text: Any,
    states: Mapping[str, Mapping[str, Tensor]],
    model: Mapping[str, Any],
    start: LogitStart | None,
    folder: Path,
    destination: Path,
) -> Export:
    """Write both halves as one model, with its factor on cosines and bias.

    Args:
        image, text: the backbones.
        states: weights of `visual` and `text`.
        model: its `model_cfg`.
        start: None: CLIP's own.
    """
    scale = CLIP_SCALE if start is None else start.scale
    whole = {
        f"{half}.{name}": tensor for half, state in states.items() for name, tensor in state.items()
    }
    whole["logit_scale"] = torch.tensor(math.log(scale))
    if start is not None and start.bias is not None:
        model = {**model, "init_logit_bias": start.bias}
        whole["logit_bias"] = torch.tensor(start.bias)
    _write_config(model, image.preprocessing, folder)
    write_weights(whole, folder / WEIGHTS)
    if isinstance(text.input, PaddedTokenizer):
        text.input.tokenizer.tokenizer.save_pretrained(folder)
    created = f"open_clip.create_model_and_transforms({f'local-dir:{destination}'!r})"
    return Export(
        "open_clip, both halves",
        python=f"model, _, preprocess = {created}",
        recipe={"builder": "openclip", "model": str(destination), "pretrained": True},
        feature="model.encode_image(images), model.encode_text(tokens)",
        note=(
            "the run has no factor on cosines; logit_scale is the one that CLIP starts from."
            if start is None
            else ""
        ),
    )


def _write_config(
    model: Mapping[str, Any], preprocessing: Mapping[str, object], folder: Path
) -> None:
    # CoCa's towers give their tokens too, and its class is not the one named here.
    plain = {
        name: {key: each for key, each in value.items() if key != "output_tokens"}
        if isinstance(value, Mapping)
        else value
        for name, value in model.items()
    }
    page = {"model_cfg": {**plain, "custom_text": True}, "preprocess_cfg": dict(preprocessing)}
    (folder / CONFIG_FILE).write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")
