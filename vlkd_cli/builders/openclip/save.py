"""A tower of open_clip as a folder that open_clip loads without vlkd."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.openclip.config import CONFIG_FILE, Source
from vlkd_cli.builders.weights import write_weights

WEIGHTS = "open_clip_model.safetensors"
PROMPT = "prompt.safetensors"


def save_half(
    half: str,
    source: Source,
    state: Mapping[str, Tensor],
    folder: Path,
    place: Path,
    *,
    preprocessing: Mapping[str, object],
) -> Export:
    """Write a folder for open_clip's `local-dir:`. Both halves of the model are described; the
    weights are of one, under its own names.

    Args:
        half: what open_clip calls it: visual or text.
        place: where the folder will be when it is done.
        preprocessing: of images, in open_clip's words.
    """
    sections = {"vision_cfg": source.vision, "text_cfg": source.text}
    # CoCa's towers give their tokens too, and its class is not the one named here.
    plain = {
        name: {key: value for key, value in section.items() if key != "output_tokens"}
        for name, section in sections.items()
    }
    model = {
        "embed_dim": source.embed_dim,
        **plain,
        "quick_gelu": source.quick_gelu,
        "custom_text": True,
    }
    content = json.dumps({"model_cfg": model, "preprocess_cfg": dict(preprocessing)}, indent=2)
    (folder / CONFIG_FILE).write_text(content + "\n", encoding="utf-8")
    write_weights(state, folder / WEIGHTS)
    option = "pretrained_image_path" if half == "visual" else "pretrained_text_path"
    return Export(
        "open_clip",
        python=(
            f"model = open_clip.create_model({f'local-dir:{place}'!r}, load_weights=False,"
            f" {option}={str(place / WEIGHTS)!r}).{half}"
        ),
        recipe={"builder": "openclip", "model": str(place), "pretrained": True},
        feature="model(images)" if half == "visual" else "model(tokens)",
    )
