"""Runs of models that are too large to be trained as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import (
    IMAGE,
    TEXT,
    differences,
    final_state,
    tiny_recipe,
    train,
    write_recipe,
)
from tests.unit.engine.test_processes import vlkd
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.errors import UserError
from vlkd_cli.reports.csv import read_metrics

DEEP = {**IMAGE, "config": {**IMAGE["config"], "layers": 3}}  # type: ignore[dict-item]
DROPPING = {**TEXT, "head": {"name": "linear", "width": 16, "dropout": 0.3}}
SHORT = {"epochs": 1, "steps": 2}


def state_after(folder: Path, run: str, **settings: Any) -> dict[str, Any]:
    recipe = tiny_recipe(
        towers={"image": DEEP, "text": DROPPING}, train={**SHORT, "ema": 0.9, **settings}
    )
    state = final_state(train(folder, recipe, run))
    del state["recipe"]
    return state


@pytest.mark.parametrize("settings", [{}, {"chunk": 3, "accumulate": 2}])
def test_a_run_that_recomputes_activations_ends_with_the_same_weights(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    stored = state_after(tmp_path, "stored", **settings)
    recomputed = state_after(tmp_path, "recomputed", checkpoint_activations=True, **settings)
    assert differences(stored, recomputed) == []


def test_a_frozen_tower_of_a_run_stays_in_16_bits_where_it_stays_frozen(tmp_path: Path) -> None:
    towers = {"image": IMAGE, "text": {**TEXT, "train": "head", "dtype": "bf16"}}
    towers["text"]["head"] = {"name": "linear", "width": 16}
    run = train(tmp_path, tiny_recipe(towers=towers, train=SHORT))
    again = {"image": IMAGE, "text": {"run": str(run), "train": "none"}}
    second = train(tmp_path, tiny_recipe(towers=again, train=SHORT), "second")
    assert final_state(second)["step"] == 2
    trained = {"image": IMAGE, "text": {"run": str(run), "train": "all"}}
    third = train(tmp_path, tiny_recipe(towers=trained, train=SHORT), "third")
    held = final_state(third)["towers"]["text"]
    assert {value.dtype.itemsize for value in held.values() if value.ndim > 1} == {4}
    trained["text"]["dtype"] = "bf16"
    with pytest.raises(UserError, match="dtype: is for frozen backbones"):
        train(tmp_path, tiny_recipe(towers=trained, train=SHORT), "fourth")


def test_one_process_has_nothing_to_divide(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train.shard: has no effect on one process"):
        train(tmp_path, tiny_recipe(train={"shard": "towers"}))


SHAPES = {"reader": "shapes", "split": "val", "num_samples": 12, "size_px": 32}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_with_divided_weights_is_like_any_other(tmp_path: Path) -> None:
    towers = {
        "image": DEEP,
        "text": {**TEXT, "head": {"name": "linear", "width": 16}},
        "next_image": {"follows": "image", "momentum": 0.5},
    }
    recipe = write_recipe(
        tmp_path,
        tiny_recipe(
            towers=towers,
            distillers=[
                {"name": "infonce"},
                {"name": "simreg", "student": "image", "teacher": "next_image"},
            ],
            data={"num_samples": 120, "augment": {"name": "none"}},
            train={
                "epochs": 1,
                "batch_size": 6,
                "ema": 0.9,
                "save_every_steps": 1,
                "save_in_background": True,
                "keep": 99,
                "best": "retrieval.mean_recall",
            },
            evals=[{"suite": "retrieval", "data": SHAPES, "every_steps": 5, "first": True}],
        ),
    )
    runs = {}
    for shard in ("none", "towers"):
        words = ("train", recipe, "--set", f"train.shard={shard}", "--cpu-workers", "2")
        code, _, err = vlkd(tmp_path, *words, "--run", shard)
        assert code == 0, err
        runs[shard] = tmp_path / shard
    losses = {name: dict(read_metrics(run)["train/loss"]) for name, run in runs.items()}
    assert losses["towers"] == pytest.approx(losses["none"], rel=1e-5)
    recalls = [read_metrics(run)["eval/retrieval.shapes.mean_recall"] for run in runs.values()]
    assert len(recalls[0]) == 3 and recalls[0] == recalls[1]
    # One format: what is read does not show how it was written.
    whole, divided = (Checkpoint.load(resolve(run, "last")) for run in runs.values())
    assert [path.name for path in sorted((runs["towers"] / "checkpoints").glob("*0010*"))] == [
        "step_00000010.pt",
        "step_00000010.shard-1-of-2.pt",
        "step_00000010.shard-2-of-2.pt",
    ]
    assert list(divided.shards) and not whole.shards
    for part in ("towers", "followers", "ema", "optimizer", "distillers"):
        assert shapes_of(getattr(whole, part)) == shapes_of(getattr(divided, part))
    # Read by everything that takes a run.
    for words in (
        ("eval", "towers", "--suite", "retrieval"),
        ("export", "towers", "exported"),
        ("train", recipe, "--run", "next", "--set", "towers.image={run: towers}", "--set")
        + ("towers.next_image={run: towers, tower: next_image, train: none}",),
    ):
        code, _, err = vlkd(tmp_path, *words)
        assert code == 0, err
    # Continued in the middle, with another number of processes, divided and not.
    for processes, shard in ((3, "towers"), (1, "none")):
        again = tmp_path / f"{shard}_{processes}"
        shutil.copytree(runs["towers"], again)
        checkpoints = again / "checkpoints"
        (checkpoints / "last.pt").unlink()
        shutil.copy(checkpoints / "step_00000006.pt", checkpoints / "last.pt")
        code, _, err = vlkd(
            *(tmp_path, "train", "--resume", str(again), "--set", f"train.shard={shard}"),
            *("--cpu-workers", str(processes)),
        )
        assert code == 0, err
        assert dict(read_metrics(again)["train/loss"]) == pytest.approx(losses["none"], rel=1e-5)


def shapes_of(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: shapes_of(value) for key, value in tree.items()}
    return (tuple(tree.shape), tree.dtype) if isinstance(tree, torch.Tensor) else type(tree)
