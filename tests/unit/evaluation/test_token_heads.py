"""Suites measure towers whose head reads tokens: what is stored is what the head gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from tests.unit.engine.recipes import IMAGE, TEXT
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.features.encode import embed_images
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.load import parse_recipe

BLOCKS = {"name": "blocks", "layers": 1, "heads": 2, "width": 12, "reads": "tokens"}


def test_a_head_over_tokens_is_embedded_and_cut(tmp_path: Path) -> None:
    sections = {"image": {**IMAGE, "head": BLOCKS}, "text": TEXT}
    recipe = parse_recipe(json.dumps({"towers": sections}), "here", [])
    tower = load_towers(recipe, None, None)["image"].eval()
    reader = Shapes(num_samples=3, size_px=32)
    pictures = torch.stack([torch.from_numpy(np.array(reader.image(n))) for n in range(3)]).permute(
        0, 3, 1, 2
    )
    with torch.no_grad():
        wanted = tower.encode(pictures.contiguous())
    for cache in (None, tmp_path, tmp_path):
        subject = Subject(tower, None, cache=cache)
        torch.testing.assert_close(embed_images(subject, reader), wanted)
        torch.testing.assert_close(embed_images(subject.at_width(5), reader), wanted[:, :5])
        assert embed_images(subject, reader, point="backbone").shape == (3, tower.feature_width)
