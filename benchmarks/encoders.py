"""One open_clip model with random weights, as vlkd's towers and as clip_benchmark's command loads
it, both from the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.tower import Tower

PRECISIONS = ("fp32", "bf16")


class Sides(NamedTuple):
    """vlkd's towers, and the peer's model, transform and tokenizer."""

    image: Tower
    text: Tower
    model: Any
    transform: Any
    tokenizer: Any


def load_sides(model: str, folder: Path) -> Sides:
    """Both sides of a model that open_clip knows by name; the weights are written to the folder."""
    import open_clip
    from clip_benchmark.models import load_clip

    torch.manual_seed(0)
    weights = folder / "weights.pt"
    torch.save(open_clip.create_model(model).state_dict(), weights)
    spec = TowerSpec.model_validate(
        {"builder": "openclip", "model": model, "pretrained": str(weights)}
    )
    peer, transform, tokenizer = load_clip("open_clip", model, str(weights), None, "cpu")
    return Sides(
        assemble("image", spec).eval(),
        assemble("text", spec).eval(),
        peer.eval(),
        transform,
        tokenizer,
    )
