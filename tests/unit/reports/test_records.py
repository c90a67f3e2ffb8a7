"""A run folder is read whole, whatever is missing or damaged in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.run_folders import make_run, write_result
from vlkd_cli.engine.launching.run_folder import runs_of, runs_under
from vlkd_cli.errors import CheckpointError
from vlkd_cli.reports.listing import describe
from vlkd_cli.reports.records import Metric, flat_recipe, read_run

TOP1 = Metric("zero_shot", "pets", "top1")


def test_a_run_is_read_with_its_best_and_last_values(tmp_path: Path):
    run = read_run(make_run(tmp_path / "a", values=[0.1, 0.3, 0.3, 0.2]))
    assert (run.name, run.seed, run.recipe_name, run.last_step) == ("a", 0, "mine", 40)
    assert run.best(TOP1) == (20, 0.3) and run.last(TOP1) == (40, 0.2)
    assert run.chance(TOP1) == 0.05
    assert run.result_of(TOP1, 20).step == 20 and run.result_of(TOP1).step == 40
    assert [step for step, _ in run.training["loss"]] == list(range(2, 41, 2))


@pytest.mark.parametrize("words", ["zero_shot.top1", "zero_shot.pets.top1"])
def test_a_metric_is_found_with_and_without_its_data(tmp_path: Path, words):
    run = read_run(make_run(tmp_path / "a", best=words))
    assert run.watched == run.find_metric(words) == TOP1
    assert run.find_metric("zero_shot.top5") is None and run.find_metric("knn.top1") is None


@pytest.mark.parametrize(
    ("name", "lower"),
    [
        ("image_to_text_median_rank", True),
        ("mae_years", True),
        ("alignment", True),
        ("5shot_top1_spread", True),
        ("image_effective_rank", False),
        ("top1", False),
        ("mean_recall", False),
        ("ranking_accuracy", False),
    ],
)
def test_ranks_and_errors_are_better_when_lower(tmp_path: Path, name, lower):
    assert Metric("s", "d", name).lower_is_better is lower
    run = read_run(make_run(tmp_path / "a", metric=name, values=[3.0, 2.0, 4.0]))
    assert run.best(Metric("zero_shot", "pets", name)) == ((20, 2.0) if lower else (30, 4.0))


def test_values_of_a_later_evaluation_belong_to_the_last_step(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    write_result(folder, None, 0.7, suite="knn", dataset="cifar.10")
    run = read_run(folder)
    assert run.evaluations[Metric("knn", "cifar.10", "top1")] == [(30, 0.7)]
    assert run.primary_metrics() == [TOP1, Metric("knn", "cifar.10", "top1")]


@pytest.mark.parametrize(
    "gone", ["versions.json", "metrics.csv", "results", "state.json", "everything"]
)
def test_what_is_missing_leaves_its_part_empty(tmp_path: Path, gone):
    folder = make_run(tmp_path / "a")
    for path in list(folder.iterdir()):
        if path.name == gone or (gone == "everything" and path.name != "recipe.yaml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = read_run(folder)
    assert run.unreadable == []
    assert bool(run.evaluations) == (gone != "everything")
    assert describe(run)["run"] == "a"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"{", b"[1, 2]", b"- :\n\t{"])
def test_what_is_damaged_is_named(tmp_path: Path, damage):
    folder = make_run(tmp_path / "a")
    for name in ("recipe.yaml", "versions.json", "state.json"):
        (folder / name).write_bytes(damage)
    result = next((folder / "results").rglob("*.json"))
    result.write_bytes(damage)
    run = read_run(folder)
    named = [str(result.relative_to(folder)), "recipe.yaml", "versions.json"]
    assert sorted(run.unreadable) == sorted(named)
    assert run.recipe == {} and len(run.evaluations[TOP1]) == 3


def test_a_recipe_of_another_shape_and_an_odd_time_cost_a_run_no_line(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    (folder / "recipe.yaml").write_text("train: [1]\n")
    state = folder / "state.json"
    state.write_text(state.read_text().replace("2026-01-01T00:01:00+00:00", "yesterday"))
    run = read_run(folder)
    assert run.unreadable == ["recipe.yaml"] and describe(run)["ended"] is None


def test_a_recipe_of_billions_of_values_costs_a_run_no_time(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (folder / "recipe.yaml").write_text("\n".join(lines))
    assert read_run(folder).unreadable == ["recipe.yaml"]


def test_a_list_of_broken_files_that_is_not_one_is_named(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    (folder / "skipped.csv").mkdir()
    (folder / "skipped_rank_1.csv").write_text("a.jpg," + "x" * 200_000)
    run = read_run(folder)
    assert run.unreadable == ["skipped.csv", "skipped_rank_1.csv"] and run.skipped == []


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is not a run folder: it has no recipe.yaml"):
        read_run(tmp_path)


def test_broken_files_of_every_rank_are_read(tmp_path: Path):
    folder = make_run(tmp_path / "a")
    (folder / "skipped.csv").write_text('"a, b.jpg",no image\nshort\n')
    (folder / "skipped_rank_1.csv").write_text("c.jpg,empty\n")
    assert read_run(folder).skipped == [("a, b.jpg", "no image"), ("c.jpg", "empty")]


def test_a_recipe_becomes_dotted_keys():
    recipe = {
        "towers": {"image": {"model": "m", "train": None}},
        "distillers": [{"name": "rkd", "weight": 2.0}],
        "optimizer": {"lr": 1e-4, "betas": [0.9, 0.95]},
        "train": {"seed": 3, "compile": False},
        "data": {"path": "/here/train.csv", "workers": 4},
        "evals": [{"suite": "knn"}],
    }
    assert flat_recipe(recipe)["evals[0].suite"] == "knn"
    assert flat_recipe(recipe, of_group=True) == {
        "towers.image.model": "m",
        "distillers[0].name": "rkd",
        "distillers[0].weight": "2",
        "optimizer.lr": "0.0001",
        "optimizer.betas": "[0.9, 0.95]",
        "train.compile": "false",
        "data.path": "train.csv",
    }


def test_runs_are_named_by_folder_name_or_the_folder_that_holds_them(tmp_path: Path):
    a, b = make_run(tmp_path / "runs" / "a"), make_run(tmp_path / "runs" / "sweep" / "b")
    base = tmp_path / "runs"
    assert runs_of([str(a)], base) == [a] == runs_of(["a", str(a)], base)
    assert runs_of([str(base)], base) == runs_under(base) == [a, b]
    with pytest.raises(CheckpointError, match=r"Did you mean 'a'|not a run folder"):
        runs_of(["aa"], base)


def test_a_run_in_one_line(tmp_path: Path):
    row = describe(read_run(make_run(tmp_path / "a", seed=3)))
    assert row == {
        "run": "a",
        "recipe": "mine",
        "seed": 3,
        "state": "finished",
        "step": "30/30",
        "metric": "zero_shot.pets.top1",
        "best": 0.3,
        "best step": 20,
        "last": 0.25,
        "ended": row["ended"],
    }
    assert row["ended"].startswith(("2025-12-31", "2026-01-01"))
    running = make_run(tmp_path / "b", state="running")
    assert describe(read_run(running))["ended"] is None
    assert json.loads((running / "state.json").read_text())["state"] == "running"
