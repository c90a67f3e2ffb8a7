"""Put the head of an exported tower on the features that its library gives: see docs/export.md."""

from __future__ import annotations

from pathlib import Path

import yaml
from safetensors.torch import load_file
from torch import nn

from vlkd_cli import catalog


def load_head(folder: Path) -> nn.Module:
    page = yaml.safe_load((folder / "vlkd_tower.yaml").read_text(encoding="utf-8"))
    keys = page["head"]
    head: nn.Module = catalog.load("head", keys.pop("name"))(page["feature_width"], **keys)
    weights = load_file(folder / page["weights_of_pooler_and_head"])
    head.load_state_dict(
        {
            name.removeprefix("head."): tensor
            for name, tensor in weights.items()
            if name.startswith("head.")
        }
    )
    return head.eval()
