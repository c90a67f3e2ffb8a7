"""A finished run that is trained for longer equals one that was as long from the beginning."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.engine.recipes import differences, final_state, tiny_recipe, train
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.errors import CheckpointError
from vlkd_cli.reports.csv import read_metrics
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.state import read_state

EVAL = {
    "suite": "retrieval",
    "k": [1],
    "every_steps": 4,
    "data": {"reader": "shapes", "split": "val", "num_samples": 6, "size_px": 32},
}
WSD = {"name": "wsd", "warmup_steps": 2, "cooldown_steps": 3}


def recipe(epochs: int, schedule: dict[str, Any], **train: Any) -> dict[str, Any]:
    """6 steps an epoch."""
    return tiny_recipe(train={"epochs": epochs, **train}, schedule=schedule, evals=[EVAL])


@pytest.mark.parametrize(
    "schedule",
    [WSD, {"name": "constant"}, {"name": "rsqrt", "timescale": 4, "cooldown_epochs": 0.5}],
)
def test_an_extended_run_has_the_weights_of_one_that_was_as_long_from_the_start(
    tmp_path: Path, schedule: dict[str, Any]
) -> None:
    short, long = recipe(1, schedule), recipe(2, schedule)
    whole = final_state(train(tmp_path, long, "whole"))
    run = train(tmp_path, short, "short")
    train(tmp_path, long, "short", resume=str(run))
    extended = final_state(run)
    assert extended["step"] == 12
    assert differences(whole, extended) == []
    assert read_metrics(run)["train/loss"] == read_metrics(tmp_path / "whole")["train/loss"]
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["epochs"] == 2


def test_what_came_after_the_cooldown_began_is_put_aside(tmp_path: Path) -> None:
    settings = {"best": "retrieval.text_to_image_median_rank"}
    run = train(tmp_path, recipe(1, WSD, **settings))
    assert Checkpoint.load(run / "checkpoints" / "before_cooldown.pt").step == 3
    before = sorted(path.name for path in (run / "results").iterdir())
    assert before == ["step_00000004", "step_00000006"]
    train(tmp_path, recipe(2, WSD, **settings), resume=str(run))
    assert (
        sorted(path.name for path in (run / "results" / "before_extension-1").iterdir()) == before
    )
    aside = {path.name for path in (run / "checkpoints" / "before_extension-1").iterdir()}
    assert aside == {"best.pt", "step_00000006.pt"}
    assert Checkpoint.load(run / "checkpoints" / "before_cooldown.pt").step == 9
    record = read_run(run)
    assert {result.step for result in record.results} == {4, 8, 12}
    state = read_state(run)
    assert state is not None and state.best_step in (4, 8, 12)
    assert Checkpoint.load(run / "checkpoints" / "best.pt").step == state.best_step


def test_a_stopped_extension_resumes_and_is_extended_from_its_step(
    tmp_path: Path,
) -> None:
    whole = final_state(train(tmp_path, recipe(4, WSD), "whole"))
    run = train(tmp_path, recipe(1, WSD), "short")
    from vlkd_cli.engine.launching.extension import extend
    from vlkd_cli.engine.launching.run_folder import RunFolder
    from vlkd_cli.recipe.load import load_unchecked

    longer = load_unchecked(run / "recipe.yaml")
    longer = longer.model_copy(update={"train": longer.train.model_copy(update={"epochs": 2})})
    # A kill right after the extension.
    extend(RunFolder(run), load_unchecked(run / "recipe.yaml"), longer)
    assert final_state(run)["step"] == 3
    train(tmp_path, recipe(2, WSD), "short", resume=str(run))
    assert final_state(run)["step"] == 12
    train(tmp_path, recipe(4, WSD), "short", resume=str(run))
    assert differences(whole, final_state(run)) == []


def refusal(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    run = train(folder, before)
    kept = final_state(run)
    with pytest.raises(CheckpointError) as caught:
        train(folder, now, resume=str(run))
    assert differences(kept, final_state(run)) == []
    return str(caught.value).replace(str(run), "RUN")


def test_a_cosine_is_not_extended_and_the_way_out_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, recipe(1, {}), recipe(2, {})) == (
        "schedule: the cosine of this run ends at step 6. Start from its weights (towers.image:"
        " {run: RUN}), or choose schedule wsd."
    )


def test_numbers_that_go_over_the_whole_run_are_not_stretched(tmp_path: Path) -> None:
    def weighted(epochs: int) -> dict[str, Any]:
        weight = {"linear": [1, 0.5]}
        return {**recipe(epochs, WSD), "distillers": [{"name": "infonce", "weight": weight}]}

    assert refusal(tmp_path, weighted(1), weighted(2)).startswith(
        "distillers[0].weight: goes from its first value to its last over the whole run"
    )


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({"steps": 5}, {"steps": 5, "epochs": 9}, "train.epochs: 9 has no effect: train.steps: 5"),
        (
            {"steps": 9},
            {"steps": 20},
            "train.steps has no effect: train.epochs: 1 ends the run at step 6. Raise it instead.",
        ),
    ],
)
def test_raising_what_does_not_end_the_run_is_refused(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], message: str
) -> None:
    constant = {"name": "constant"}
    line = refusal(
        tmp_path,
        recipe(1, constant, **before),
        recipe(now.pop("epochs", 1), constant, **now),
    )
    assert line.startswith(message)


def test_a_run_is_not_shortened(tmp_path: Path) -> None:
    constant = {"name": "constant"}
    line = refusal(tmp_path, recipe(2, constant), recipe(1, constant))
    assert re.match("RUN was trained with train.epochs 2; this recipe has 1.", line)


def test_a_checkpoint_from_before_the_cooldown_that_is_gone_is_named(tmp_path: Path) -> None:
    run = train(tmp_path, recipe(1, WSD))
    (run / "checkpoints" / "before_cooldown.pt").unlink()
    with pytest.raises(
        CheckpointError, match="before_cooldown.pt is missing: it holds the weights"
    ):
        train(tmp_path, recipe(2, WSD), resume=str(run))
