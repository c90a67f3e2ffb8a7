"""What a head that was trained on pixels paints, as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, tiny_recipe, train
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.engine.painted import find_painter
from vlkd_cli.engine.vectors import read_vectors
from vlkd_cli.errors import UserError
from vlkd_cli.recipe.load import parse_recipe


def painting(**pixels: Any) -> dict[str, Any]:
    """A recipe of masked pictures."""
    heads = {
        "paint": {"name": "linear", "width": 3 * 8 * 8, "reads": "tokens", "at": "hidden"},
        "pixels": {"name": "patches", "reads": "input", "at": "hidden", **pixels},
    }
    recipe = tiny_recipe(
        data={"num_samples": 8, "augment": {"name": "standard", "mask": {"name": "random"}}},
        distillers=[{"name": "regress", "student": "image.paint", "teacher": "image.pixels"}],
        train={"epochs": 1},
    )
    return {**recipe, "towers": {"image": {**IMAGE, "masks": "replace", "heads": heads}}}


@pytest.mark.parametrize("normalize", [True, False])
def test_the_target_itself_paints_the_picture_and_anything_else_its_hidden_positions(
    normalize: bool,
) -> None:
    recipe = parse_recipe(json.dumps(painting(normalize=normalize)), "here", [])
    towers = {name: tower.eval() for name, tower in load_towers(recipe, None, None).items()}
    painter = find_painter(recipe, towers, "image", "paint")
    picture = torch.from_numpy(np.array(Shapes(num_samples=1, size_px=32).image(0)))
    image = picture.permute(2, 0, 1).contiguous()
    same = painter._replace(output="pixels").paint(image, seed=3)
    torch.testing.assert_close(same, image / 255, atol=1e-3, rtol=0)
    changed = (painter.paint(image, seed=3) - image / 255).abs().amax(0) > 1e-3
    hidden = changed.unflatten(0, (4, 8)).unflatten(2, (4, 8)).any(3).any(1)
    assert int(hidden.sum()) == 12  # three quarters of 4 x 4 positions


def test_a_command_writes_a_picture_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path, painting())
    shapes = Shapes(num_samples=3, size_px=40)
    Path("photos").mkdir()
    for index in range(3):
        shapes.image(index).save(f"photos/{index}.png")
    words = ["encode", str(run), "photos", "out.npy", "--raw", "--pictures", "painted", "--output"]
    assert leaves([*words, "paint"]) == 0
    rows, page = read_vectors(Path("out.npy"))
    assert rows.shape == (3, 16, 192) and (page.output, page.positions) == ("paint", 16)
    files = sorted(Path("painted").iterdir())
    assert [file.name for file in files] == [f"00000{row}_{row}.png" for row in range(3)]
    assert {Image.open(file).size for file in files} == {(32, 32)}
    capsys.readouterr()
    assert leaves([*words, "backbone"]) == 2
    assert "no distiller compares 'backbone' of tower 'image' with" in capsys.readouterr().err


def test_an_output_without_pixels_as_target_paints_nothing() -> None:
    recipe = parse_recipe(json.dumps(painting()), "here", [])
    with pytest.raises(UserError, match="no distiller compares 'tokens' of tower 'image' with"):
        find_painter(recipe, {}, "image", "tokens")
