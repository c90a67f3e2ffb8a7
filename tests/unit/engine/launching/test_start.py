"""What `vlkd train` refuses before any worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import tiny_recipe, train, write_recipe
from vlkd_cli.engine.launching import start
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.errors import CheckpointError, UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name the recipe to train"),
        ({"resume": "latest"}, "name the recipe to train"),
        ({"recipe": "r.yaml", "trust": True}, "--trust has no effect here"),
        ({"recipe": "r.yaml", "dry_run": True, "resume": "a"}, "--resume has no effect with --dry"),
        ({"recipe": "r.yaml", "dry_run": True, "run": Path("a")}, "--run has no effect with --dry"),
        ({"recipe": "r.yaml", "dry_run": True, "max_restarts": 1}, "--max-restarts has no effect"),
        ({"resume": "a", "run": Path("b")}, "--run b has no effect with --resume a"),
        ({"recipe": "r.yaml", "rendezvous": "a:1"}, "--rendezvous has no effect without --nodes"),
        (
            {"recipe": "r.yaml", "nodes": 2, "rendezvous": "a:1"},
            "must know the run's folder: give the same --run FOLDER",
        ),
    ],
)
def test_options_that_are_missing_or_change_nothing_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        start_training(TrainRequest(**options))


def test_torchrun_takes_the_options_that_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = Path("run")
    for options in ({"nodes": 2, "rendezvous": "a:1"}, {"max_restarts": 1}):
        with pytest.raises(UserError, match="has no effect under torchrun or SLURM"):
            start_training(TrainRequest(recipe="r.yaml", run=run, **options))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="must know the run's folder"):
        start_training(TrainRequest(recipe="r.yaml"))


def test_processes_that_batches_cannot_be_divided_among_are_refused_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(train={"steps": 1})
    run = train(tmp_path, recipe)

    def never(*_: object) -> int:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(start, "run_workers", never)
    with pytest.raises(CheckpointError, match="cannot be divided among 3 processes"):
        train(tmp_path, recipe, resume=str(run), cpu_workers=3)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(CheckpointError, match="cannot be divided among 5 processes"):
        train(tmp_path, recipe, resume=str(run))


def test_only_the_first_node_writes_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "run_workers", lambda *_: 0)
    options: dict[str, Any] = {
        "recipe": write_recipe(tmp_path, tiny_recipe()),
        "run": tmp_path / "run",
        "nodes": 2,
        "rendezvous": "127.0.0.1:29612",
        "cpu_workers": 1,
    }
    assert start_training(TrainRequest(**options, node_rank=1)) == 0
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert start_training(TrainRequest(**options)) == 0
    assert (tmp_path / "run" / "recipe.yaml").exists()
