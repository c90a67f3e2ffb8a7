"""Towers out of exported folders: pooler, heads and preprocessing come back; damage is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import ADDED, PAGE, export_tower
from vlkd_cli.towers.exported import exported_folders, load_exported

SECTION = {
    "builder": "openclip",
    "config": {"layers": 1, "width": 16, "heads": 2},
    "pooler": {"name": "gem"},
    "heads": {
        "wide": {"name": "linear", "width": 12},
        "head": {"name": "mlp", "width": 6, "layers": 2, "hidden": 8, "reads": "wide"},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tower = assemble("text", TowerSpec.model_validate(SECTION))
    (tmp_path / "out" / "text").mkdir(parents=True)
    export_tower(tower, tmp_path / "out" / "text", tmp_path / "out" / "text")
    return tmp_path / "out" / "text"


def test_pooler_and_heads_come_back_under_another_random_state(folder: Path):
    torch.manual_seed(0)
    tower = assemble("text", TowerSpec.model_validate(SECTION)).eval()
    torch.manual_seed(1)
    again = load_exported(folder).eval()
    tokens = tower.input(["a cat", "two dogs in the snow"])
    for output in ("backbone", "wide", "head"):
        torch.testing.assert_close(again.encode(tokens, output), tower.encode(tokens, output))
    assert again.is_frozen


def test_images_are_prepared_as_in_the_run(tmp_path: Path):
    section = {"builder": "torchvision", "model": "mobilenet_v3_small", "image_size": 32}
    tower = assemble("image", TowerSpec.model_validate(section))
    tower.input = tower.input._replace(mean=(0.1, 0.2, 0.3), resize="squash")
    export_tower(tower, tmp_path, tmp_path)
    assert load_exported(tmp_path).input == tower.input


def test_folders_are_found_from_outside_and_from_inside(folder: Path):
    assert exported_folders(folder.parent) == {"text": folder}
    assert exported_folders(folder) == {"text": folder}
    assert exported_folders(folder.parent.parent) == {}


def test_pages_name_no_place_and_serve_wherever_the_folder_is(folder: Path):
    page = yaml.safe_load((folder / PAGE).read_text())
    assert page["recipe"]["model"] == "." and "'local-dir:.'" in page["python"]
    assert str(folder) not in (folder / PAGE).read_text()
    moved = folder.rename(folder.parent.parent / "elsewhere")
    state = load_exported(moved).state_dict()
    # Pages of earlier versions name the folder as it was.
    page["recipe"]["model"] = "/gone/out/text"
    (moved / PAGE).write_text(yaml.safe_dump(page))
    torch.testing.assert_close(load_exported(moved).state_dict(), state)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recipe": None}, "is damaged: it holds no recipe"),
        ({"tower": None}, "is damaged: it names no tower"),
        ({"head": 3}, "is damaged"),
        ({"images": {"std": 3}}, "is damaged: `images` is of another form"),
        ({"images": {"std": [1.0, 0.0, 1.0]}}, "is damaged: `images` is of another form"),
        ({"images": {"size_px": [10**30, 8]}}, "is damaged: `images` is of another form"),
        ({"images": {"side": 8}}, "is damaged: `images` is of another form"),
        ({"heads": {}}, "does not fit its page: 'head.layers.0.weight' differs"),
        ({"head": {"name": "os:system"}}, "names code from outside vlkd. Add --trust"),
    ],
)
def test_a_page_that_is_damaged_or_foreign_is_one_line(change, line, folder: Path):
    page = yaml.safe_load((folder / PAGE).read_text())
    page = {key: value for key, value in {**page, **change}.items() if value is not None}
    if change.get("heads") == {}:
        page["head"].pop("reads")
    (folder / PAGE).write_text(yaml.safe_dump(page))
    with pytest.raises(UserError, match=line) as error:
        load_exported(folder)
    assert PAGE in str(error.value) or ADDED in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "a: &a {b: *a}",
        "[" * 3_000,
        "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
    ],
    ids=["cut", "self", "deep", "bomb"],
)
def test_a_page_that_is_not_one_is_damaged(folder: Path, text: str):
    (folder / PAGE).write_text(text)
    with pytest.raises(RecipeError, match="is damaged"):
        load_exported(folder)
