"""Runs with named heads, views of several pictures, masks and followers, from recipe to export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.unit.engine.recipes import IMAGE, TEXT, differences, final_state, tiny_recipe, train
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.evaluate import load_towers
from vlkd_cli.recipe.load import recipe_from_json
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.reports.csv import read_metrics
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import export_tower

BATCH_NORM = {"name": "mlp", "layers": 2, "hidden": 8, "norm": "batch", "width": 8}
FOLLOWED = tiny_recipe(
    towers={
        "image": {
            **IMAGE,
            "heads": {"project": BATCH_NORM, "predict": {**BATCH_NORM, "reads": "project"}},
        },
        "text": {**TEXT, "train": "none"},
        "image_slow": {"follows": "image", "momentum": 0.5},
    },
    distillers=[
        {
            "name": "simreg",
            "student": "image.predict",
            "teacher": ["image_slow.project@main.2", "image_slow.project@main.1"],
        }
    ],
    data={"augment": {"name": "simclr", "copies": 2}},
    train={"epochs": 1, "steps": 4, "save_every_steps": 2, "keep": 2},
)
MASKED = tiny_recipe(
    towers={
        "image": {
            **IMAGE,
            "masks": "replace",
            "heads": {
                "guess": {"name": "linear", "width": 192, "reads": "tokens", "at": "hidden"},
                "pixels": {"name": "patches", "reads": "input", "at": "hidden"},
            },
        },
        "text": {**TEXT, "train": "none"},
    },
    distillers=[{"name": "regress", "student": "image.guess", "teacher": "image.pixels"}],
    data={"augment": {"name": "standard", "mask": {"name": "random", "share": 0.5}}},
    train={"epochs": 4},
    optimizer={"name": "adamw", "lr": 1e-2},
)


def without_text(recipe: dict[str, Any]) -> dict[str, Any]:
    towers = {name: tower for name, tower in recipe["towers"].items() if name != "text"}
    return {**recipe, "towers": towers}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("followed"), without_text(FOLLOWED))


def test_a_run_with_a_follower_and_several_pictures_resumes_to_the_same_bits(
    followed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(followed, tmp_path / "run")
    for name in ("last.pt", "step_00000004.pt"):
        (run / "checkpoints" / name).unlink()
    shutil.copy(run / "checkpoints" / "step_00000002.pt", run / "checkpoints" / "last.pt")
    train(tmp_path, without_text(FOLLOWED), resume=str(run))
    assert differences(final_state(followed), final_state(run)) == []


def test_a_follower_is_evaluated_exported_and_taken_by_another_recipe(
    followed: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.load(followed / "checkpoints" / "last.pt")
    recipe = recipe_from_json(checkpoint.recipe)
    loaded = load_towers(recipe, followed, checkpoint)["image_slow"].eval()
    assert loaded.name == "image_slow" and list(loaded.graph.links) == ["project"]
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    expected = loaded(images, ("backbone", "project"))
    spec = TowerSpec.model_validate({"run": str(followed), "tower": "image_slow"})
    taken = assemble("image", spec, outputs=["project"]).eval()
    for name, values in taken(images, ("backbone", "project")).items():
        torch.testing.assert_close(values, expected[name])
    live = load_towers(recipe, followed, checkpoint)["image"].eval()
    assert not torch.allclose(live.features(images), expected["backbone"])
    written = export_tower(loaded, tmp_path, tmp_path, name="image_slow")
    assert "head.safetensors" in written.files
    page = yaml.safe_load((tmp_path / "vlkd_tower.yaml").read_text())
    assert list(page["heads"]) == ["project"] and page["heads"]["project"]["name"] == "mlp"


def test_masked_pictures_are_learned(tmp_path: Path) -> None:
    run = train(tmp_path, without_text(MASKED))
    losses = [value for _, value in read_metrics(run)["train/regress"]]
    assert losses[-1] < 0.9 * losses[0]
    state = final_state(run)["towers"]["image"]
    assert state["backbone.mask_token"].abs().sum() > 0
    assert {name.split(".")[1] for name in state if name.startswith("heads.")} == {"guess"}
