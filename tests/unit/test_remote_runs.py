"""Runs whose folder is at a URL."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import (
    differences,
    final_state,
    tiny_recipe,
    train,
    write_recipe,
)
from vlkd_cli.checkpoint import Checkpoint, resolve
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.engine.launching.start_evaluation import find_target
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.remote_runs import NAMES, RemoteRun

SAVES = {"save_every_steps": 2, "save_every_epochs": None, "keep": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(**keys: Any) -> dict[str, Any]:
    train = {**SAVES, "epochs": 2, **keys}
    return tiny_recipe(data={"num_samples": 32}, train=train, schedule={"name": "constant"})


def train_at(folder: Path, wanted: dict[str, Any], url: str, *, resume: bool = False) -> None:
    where: dict[str, Any] = {"resume": url} if resume else {"run": url}
    request = TrainRequest(recipe=write_recipe(folder, wanted), quiet=True, **where)
    assert start_training(request) == 0


@pytest.mark.slow
def test_a_run_at_a_url_resumes_on_a_machine_that_never_saw_it(tmp_path: Path, cache: Path) -> None:
    whole = train(tmp_path, recipe(), run="whole")
    place, url = tmp_path / "bucket" / "run", f"file://{tmp_path}/bucket/run"
    train_at(tmp_path, recipe(steps=4), url)
    names = sorted(path.name for path in (place / "checkpoints").iterdir())
    assert names == ["last.pt", "names.json", "step_00000002.pt", "step_00000004.pt"]
    assert (place / "recipe.yaml").is_file() and (place / "metrics.csv").is_file()
    shutil.rmtree(cache)
    train_at(tmp_path, recipe(), url, resume=True)
    remote = Checkpoint.load(place / "checkpoints" / "last.pt")
    assert remote.step == 8 and not list(place.rglob("*.partial"))
    assert differences(remote.towers, final_state(whole)["towers"]) == []
    assert sorted(path.name for path in (place / "checkpoints").glob("step_*")) == [
        "step_00000006.pt",
        "step_00000008.pt",
    ]
    with pytest.raises(CheckpointError, match=r"bucket/run holds a run already. Continue it with"):
        train_at(tmp_path, recipe(), url)
    # What other commands take from it.
    shutil.rmtree(cache)
    assert Checkpoint.load(resolve(url)).step == 8
    assert Checkpoint.load(resolve(f"{url}/checkpoints/step_00000006.pt")).step == 6
    assert find_target(url, [], tmp_path)[2] == resolve(url)


def test_any_protocol_of_fsspec_is_one_for_runs(tmp_path: Path) -> None:
    url = "memory://runs/one"
    train_at(tmp_path, recipe(save_in_background=True), url)
    shutil.rmtree(RemoteRun(url).folder)
    assert Checkpoint.load(resolve(url, "last")).step == 8


def checkpoints(folder: Path) -> Path:
    return folder / "checkpoints"


def saved(folder: Path, step: int) -> None:
    state = Checkpoint(step=step, recipe="{}", world_size=1, global_batch=1, towers={})
    state.save(checkpoints(folder), is_best=step == 1, keep=1)


def test_a_copy_that_is_cut_off_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/bucket/run"
    remote = RemoteRun(url)
    remote.folder.mkdir(parents=True)
    (remote.folder / "recipe.yaml").write_text("towers: {}")
    saved(remote.folder, 1)
    remote.push()
    for call in ("_put", "_replace", "_write"):
        saved(remote.folder, 2)
        with monkeypatch.context() as broken:
            broken.setattr(RemoteRun, call, fail)
            with pytest.raises(CheckpointError, match=r"cannot be written \(OSError: cut\)"):
                remote.push()
        shutil.rmtree(remote.folder)
        folder = RemoteRun(url).fetch()
        assert Checkpoint.load(checkpoints(folder) / "last.pt").step == 1
    saved(remote.folder, 2)
    RemoteRun(url).push()
    shutil.rmtree(remote.folder)
    RemoteRun(url).fetch()
    steps = [Checkpoint.load(checkpoints(folder) / f"{name}.pt").step for name in ("last", "best")]
    assert steps == [2, 1]
    assert sorted(
        file.name for file in (tmp_path / "bucket" / "run" / "checkpoints").iterdir()
    ) == [*("best.pt", "last.pt", Path(NAMES).name, "step_00000002.pt")]


def fail(*args: object) -> None:
    raise OSError("cut")


def test_what_is_at_the_url_counts_and_not_what_lies_here(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket/run"
    remote = RemoteRun(url)
    remote.folder.mkdir(parents=True)
    (remote.folder / "recipe.yaml").write_text("towers: {}")
    saved(remote.folder, 1)
    remote.push()
    saved(remote.folder, 2)  # never copied
    folder = RemoteRun(url).fetch()
    assert [file.name for file in checkpoints(folder).glob("step_*")] == ["step_00000001.pt"]
    assert Checkpoint.load(checkpoints(folder) / "last.pt").step == 1


def test_places_that_are_wrong_say_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run at file:///.*/none"):
        resolve(f"file://{tmp_path}/none")
    with pytest.raises(CheckpointError, match=r"nosuch://x: .*Install the fsspec package"):
        RemoteRun("nosuch://x")
    divided = tiny_recipe(train={"shard": "towers"})
    request = TrainRequest(
        recipe=write_recipe(tmp_path, divided), run="memory://runs/parts", cpu_workers=2
    )
    with pytest.raises(RecipeError, match=r"tiny.yaml:\d+: train.shard: the parts of a checkpoint"):
        start_training(request)
