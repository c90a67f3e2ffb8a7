"""Copies of towers that fine-tuning trains."""

from __future__ import annotations

import torch

from vlkd_cli.evaluation.probes.fine_tuning import learning_copy
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble


def test_a_tower_whose_heads_read_visible_positions_alone_is_copied() -> None:
    section = {
        "builder": "timm",
        "model": "vit_tiny_patch16_224",
        "image_size": 32,
        "config": {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
        "masks": "drop",
        "heads": {"latent": {"name": "regressor", "reads": "tokens", "layers": 1, "heads": 2}},
    }
    tower = assemble("image", TowerSpec.model_validate(section)).eval()
    copied = learning_copy(tower).eval()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(copied.features(images), tower.features(images))
    assert not set(copied.parameters()) & set(tower.parameters())
