"""Take a trained adapter elsewhere: see docs/adapters.md."""

from __future__ import annotations

from pathlib import Path

from vlkd_cli.builders.adapters.files import export_merged, save_adapter
from vlkd_cli.towers.tower import Tower


def keep_adapter(tower: Tower, folder: Path) -> None:
    save_adapter(
        tower.encoder, folder / "my_adapter"
    )  # adapter.yaml (the recipe's section) and adapter.safetensors
    export_merged(
        tower.encoder, folder / "my_encoder"
    )  # a plain transformers folder: lora, dora, vera, ia3
