"""What a run folder records of the run."""

from __future__ import annotations

import json
import subprocess

from tests.support.recipes import SMALL, recipe
from vlkd_cli.recipe.load import load_recipe, recipe_of_checkpoint
from vlkd_cli.recipe.snapshot import (
    git_state,
    recipe_to_json,
    recipe_to_yaml,
    versions,
    write_snapshot,
)

FULL = (
    SMALL.replace(
        "{name: infonce}",
        "{name: infonce, weight: {linear: [0, 1], epochs: 3}, student: image.backbone@b}",
    )
    + "train: {save_every_epochs: null, ema: 0.99}\nreports: [csv, {name: wandb, project: 'ä'}]\n"
    + "evals: [{suite: retrieval, every_epochs: 2, data: {reader: shapes, split: val}}]\n"
)


def test_a_resolved_recipe_loads_to_an_equal_one(tmp_path):
    read = recipe(
        FULL,
        "data.views={b: {name: simclr, copies: 2, size_px: 96}, c: null}",
        "towers.image.heads={project: {name: linear, width: 8, reads: [backbone, backbone.1]}}",
        "distillers[0].student=[image.project@b, image.project@c, image.project]",
        "evals[0].name=found",
        "optimizer.groups=[{match: ['image.*'], lr_factor: 2, from: {steps: 1}}]",
        "towers.image.train={last: 2}",
        "towers.ema={follows: image}",
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_to_yaml(read), encoding="utf-8")
    assert load_recipe(file) == read


def test_a_resolved_recipe_writes_defaults_out():
    text = recipe_to_yaml(recipe())
    assert "batch_size: 64" in text
    assert "weight_decay: 0.2" in text
    assert "null" not in text


def test_a_null_that_is_not_the_default_is_stored():
    assert "save_every_epochs: null" in recipe_to_yaml(
        recipe(FULL, "data.views={b: {name: simclr}}")
    )


def test_a_snapshot_holds_recipe_versions_and_command(tmp_path):
    write_snapshot(recipe(), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe()
    message = json.loads((tmp_path / "run" / "versions.json").read_text())
    assert {"vlkd", "python", "platform", "packages", "git", "command"} == set(message)
    assert {"torch", "open_clip_torch", "transformers"} <= set(versions()["packages"])


def test_the_state_of_a_checkout(tmp_path):
    assert git_state(tmp_path) is None

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["changed"] is False
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["changed"] is True


def test_the_recipe_of_a_checkpoint_with_parameter_groups_is_read_again():
    groups = '[{match: ["image.*"], from: {epochs: 1}}, {match: ["*"], lr_factor: 0.5}]'
    before = recipe(SMALL, f"optimizer.groups={groups}", "train.epochs=2")
    after = recipe_of_checkpoint(recipe_to_json(before), "last.pt", foreign=False)
    assert after.optimizer == before.optimizer
    assert json.loads(recipe_to_json(before))["optimizer"]["groups"][0]["from"] == {
        "epochs": 1,
        "steps": None,
    }
