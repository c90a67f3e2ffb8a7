"""A recipe's composition and loader in a Python program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vlkd_cli
from docs.snippets.own_loop import outputs
from docs.snippets.own_loop import train as own_loop
from tests.unit.engine.recipes import TEXT, tiny_recipe, train, write_recipe
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.recipe.types import Progress
from vlkd_cli.reports.csv import read_metrics

QUEUE = {"name": "moco", "queue_size": 16, "student": "image", "teacher": "text"}
RECIPE = tiny_recipe(
    towers={"text": TEXT},
    data={"num_samples": 16},
    distillers=[{"name": "infonce"}, QUEUE],
    train={"epochs": 1},
    optimizer={"weight_decay": 0.01, "decay_all": True},
    schedule={"name": "constant"},
)


def test_a_loop_of_ones_own_has_the_losses_of_a_run(tmp_path: Path) -> None:
    run = train(tmp_path, RECIPE)
    logged = [value for _, value in read_metrics(run)["train/loss"]]
    assert own_loop(str(tmp_path / "tiny.yaml"), 2) == pytest.approx(logged, rel=1e-4)
    found = outputs(str(run), torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "backbone": (2, 16),
        "tokens": (2, 16, 16),
    }
    with pytest.raises(UserError, match="has no tower 'imag'. Did you mean 'image'?"):
        vlkd_cli.open_run(run).tower("imag")


def test_a_forward_pass_is_pure_and_commit_moves_the_state(tmp_path: Path) -> None:
    composition, loader = vlkd_cli.compose(write_recipe(tmp_path, RECIPE), device="cpu")
    batch, queue = next(loader.batches(0)), composition.distillers["moco"].queue.rows.clone()
    first, second = (composition(batch, Progress()) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and list(first.terms) == ["infonce", "moco"]
    torch.testing.assert_close(first.loss, sum(first.terms.values()))
    assert torch.equal(composition.distillers["moco"].queue.rows, queue)
    composition.commit(Progress())
    assert not torch.equal(composition.distillers["moco"].queue.rows, queue)
    loader.close()


def test_what_only_building_shows_is_one_line_with_its_place(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, RECIPE)
    change = "optimizer.groups=[{match: [x.*], lr_factor: 0.5}]"
    with pytest.raises(RecipeError, match=r"^--set optimizer.groups=.*'x.\*' matches no trainable"):
        vlkd_cli.compose(recipe, overrides=[change], device="cpu")
