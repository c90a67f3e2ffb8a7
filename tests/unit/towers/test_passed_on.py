"""A tower whose `head` is another of its outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.engine.recipes import IMAGE, TEXT
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.errors import RecipeError
from vlkd_cli.features.encode import embed_images
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.towers.tower import Tower

HEADS = {
    "project": {"name": "linear", "width": 6},
    "paint": {"name": "linear", "width": 5, "reads": "tokens"},
}


@pytest.fixture(scope="module")
def towers() -> dict[str, Tower]:
    recipe = {
        "towers": {"image": {**IMAGE, "heads": HEADS}, "text": {**TEXT, "train": "none"}},
        "data": {"reader": "shapes"},
        "distillers": [
            {"name": "simreg", "student": f"image.{name}", "teacher": f"image.{name}"}
            for name in HEADS
        ],
    }
    loaded = load_towers(parse_recipe(json.dumps(recipe), "here", []), None, None)
    return {name: tower.eval() for name, tower in loaded.items()}


@pytest.mark.parametrize("output", ["backbone", "project", "tokens", "paint", "layers.0"])
def test_suites_read_the_output_as_the_head(
    output: str, towers: dict[str, Tower], tmp_path: Path
) -> None:
    tower, reader = towers["image"], Shapes(num_samples=3, size_px=32)
    arrays = [torch.from_numpy(np.array(reader.image(row))) for row in range(3)]
    with torch.no_grad():
        wanted = tower.encode(torch.stack(arrays).permute(0, 3, 1, 2).contiguous(), output)
    chosen = tower.at_output(output)
    assert chosen.positions == (None if wanted.ndim == 2 else 16)
    for cache in (None, tmp_path, tmp_path):
        found = embed_images(Subject(chosen, None, cache=cache), reader)
        torch.testing.assert_close(found, wanted.flatten(1))
    # The tower itself stays as it was, and shares its parts.
    assert tower.passed_on == "head" and chosen.encoder is tower.encoder


def test_each_output_has_a_digest_of_its_own(towers: dict[str, Tower]) -> None:
    subject, tower = Subject(None, None), towers["image"]
    chosen = [tower.at_output(name) for name in ("head", "backbone", "project", "tokens")]
    assert len({subject.weights_digest(each) for each in chosen}) == 4


@pytest.mark.parametrize(
    ("tower", "output", "line"),
    [
        (
            "image",
            "tokns",
            "tower 'image' has no output 'tokns'. Did you mean 'tokens'? Outputs: backbone, tokens,"
            " project, paint, head.",
        ),
        (
            "text",
            "tokens",
            "tower 'text': 'tokens' has a row for each position, whose number differs between"
            " texts. Choose an output of rows.",
        ),
    ],
)
def test_an_output_that_cannot_be_passed_on_is_one_line(
    tower: str, output: str, line: str, towers: dict[str, Tower]
) -> None:
    with pytest.raises(RecipeError) as raised:
        towers[tower].at_output(output)
    assert str(raised.value) == line
