"""Every recipe of self-supervised learning trains: two steps on rendered pictures, with tiny towers
in place of the large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.snapshot import recipe_to_yaml
from vlkd_cli.reports.csv import read_metrics

RECIPES = [name for name in shipped_recipes() if name.startswith("ssl/")]
QUICK = ("ssl/simclr", "ssl/mae", "ssl/dino", "ssl/deepcluster")
SMALLER = {
    "num_prototypes": 6,
    "prototypes": 12,
    "queue_size": 16,
    "hidden": 16,
    "bottleneck": 8,
    "width_inner": 16,
    "layers": 2,
    "heads": 2,
    "negatives": 8,
    "num_clusters": 3,
    "components": 3,
    "min_cluster": 2,
    "size_px": 32,
    "copies": 2,
    "cell_px": 20,
    "jitter_px": 4,
    "smallest": 2,
}
VIT = {"patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2}
SWIN = {"window_size": 2, "depths": [1, 1, 1, 1], "embed_dim": 16, "num_heads": [1, 1, 2, 2]}


def shrunk(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: min(SMALLER[key], part)
            if key in SMALLER and isinstance(part, int)
            else shrunk(part)
            for key, part in value.items()
        }
    return [shrunk(part) for part in value] if isinstance(value, list) else value


def tiny_tower(tower: dict[str, Any]) -> dict[str, Any]:
    if tower.get("follows"):
        return tower
    model = str(tower.get("model"))
    if tower["builder"] == "torchvision":
        return {**tower, "model": "resnet18", "image_size": 64}
    if tower["builder"] == "openclip":
        sizes = {"layers": 1, "width": 32, "heads": 2}
        if tower.get("model"):
            sizes |= {"image_size": 32, "patch_size": 8}
        kept = {key: part for key, part in tower.items() if key not in ("model", "pretrained")}
        return {**kept, "config": sizes}
    if tower["builder"] == "dvae":
        # Small and random; the real weights are not ours to ship.
        sizes = {"image_size": 32, "config": {"width": 8, "layers": 1, "codes": 16}}
        return {**{key: part for key, part in tower.items() if key != "pretrained"}, **sizes}
    if model.startswith("swin"):
        return {
            **tower,
            "model": "swin_tiny_patch4_window7_224",
            "image_size": 64,
            "config": SWIN,
        }
    config = {key: part for key, part in (tower.get("config") or {}).items() if key != "num_heads"}
    return {**tower, "model": "vit_tiny_patch16_224", "image_size": 32, "config": {**config, **VIT}}


def fitted(name: str, recipe: dict[str, Any]) -> None:
    """Widths of targets and numbers of hidden positions of the tiny towers."""
    heads = recipe["towers"]["image"].get("heads") or {}
    mask = (recipe["data"].get("augment") or {}).get("mask")
    if name == "ssl/barlow_twins":
        # Eight rows correlate almost all of 8192 features, and the loss sums their squares.
        heads["project"]["width"] = 64
    if name == "ssl/mae":
        heads["paint"]["width"] = 3 * 8 * 8
    if name == "ssl/maskfeat":
        heads["guess"]["width"] = 3 * 9
    if name == "ssl/masked_clip":
        heads["guess"]["width"] = 32
    if name == "ssl/cae":
        heads["code"]["width"] = 16
    if name in ("ssl/deepcluster", "ssl/odc"):
        recipe["distillers"][0] |= {"num_clusters": 3, "components": 3}
    if mask and mask.get("hidden"):
        mask["hidden"] = 5


def stand_in(name: str, folder: Path) -> dict[str, Any]:
    whole = yaml.safe_load(recipe_to_yaml(load_recipe(name)))
    towers = whole["towers"]
    recipe = shrunk(whole)
    recipe["towers"] = {key: tiny_tower({**towers[key], **recipe["towers"][key]}) for key in towers}
    kept = {key: recipe["data"][key] for key in ("augment", "views") if recipe["data"].get(key)}
    recipe["data"] = {"reader": "shapes", "num_samples": 16, "size_px": 64, "workers": 0, **kept}
    fitted(name, recipe)
    recipe["train"] |= {
        "epochs": 2,
        "steps": 2,
        "batch_size": 8,
        "log_every_steps": 1,
        "precision": "fp32",
        "sync_batch_norm": False,
        "cache_dir": str(folder / "cache"),
    }
    for group in recipe["optimizer"].get("groups", []):
        group.pop("from", None)
    recipe["schedule"] = {"name": "constant"}
    recipe["evals"], recipe["reports"] = [], ["csv"]
    return recipe


def test_the_algorithms_are_there():
    assert len(RECIPES) >= 23


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in RECIPES],
)
def test_a_recipe_of_self_supervised_learning_trains_two_steps(name, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(stand_in(name, tmp_path)), encoding="utf-8")
    assert start_training(TrainRequest(recipe=str(path), run=tmp_path / "run", quiet=True)) == 0
    losses = read_metrics(tmp_path / "run")["train/loss"]
    assert [step for step, _ in losses] == [1, 2]
    assert all(abs(value) < 1e4 for _, value in losses)
