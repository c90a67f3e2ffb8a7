from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import run_on_ranks
from tests.support.recipes import problems_with
from tests.unit.engine.recipes import differences, final_state, tiny_recipe, train
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.sharding import divide, own_slice
from vlkd_cli.engine.saving import Saver
from vlkd_cli.errors import CheckpointError

BACKGROUND = {"save_in_background": True, "save_every_steps": 2, "keep": 3}


def checkpoint(step: int = 1, value: float = 0.0) -> Checkpoint:
    weight = torch.full((3, 2), value)
    return Checkpoint(
        step=step,
        recipe="{}",
        world_size=1,
        global_batch=1,
        towers={"image": {"weight": weight, "tied": weight}},
        optimizer={"image.weight": {"moment": weight + 1, "step": 3}},
    )


def save(saver: Saver, saved: Checkpoint, **keys: bool) -> None:
    saver.save(saved, **{"is_best": False, "before_cooldown": False, **keys})


class Held(Saver):
    """Writes when it is let."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        super().__init__(folder, in_background=True, **keys)
        self.may_write, self.writes = threading.Event(), 0

    def _write(self, *keys: Any) -> None:
        self.may_write.wait(30)
        self.writes += 1
        super()._write(*keys)


def test_a_file_written_in_the_background_is_that_of_the_moment_of_the_save(
    tmp_path: Path,
) -> None:
    saver, saved = Held(tmp_path), checkpoint()
    save(saver, saved)
    saved.towers["image"]["weight"].fill_(9)  # the next step
    saver.may_write.set()
    saver.wait()
    state = Checkpoint.load(tmp_path / "last.pt")
    assert differences(state.towers, checkpoint().towers) == []
    assert differences(state.optimizer, checkpoint().optimizer) == []
    tied = state.towers["image"]
    assert tied["weight"].data_ptr() == tied["tied"].data_ptr()


def test_at_most_one_save_is_in_flight(tmp_path: Path) -> None:
    saver = Held(tmp_path, keep=5)
    save(saver, checkpoint(1))
    threading.Timer(0.2, saver.may_write.set).start()
    save(saver, checkpoint(2), is_best=True)
    assert saver.writes >= 1 and (tmp_path / "step_00000001.pt").is_file()
    saver.wait()
    assert Checkpoint.load(tmp_path / "best.pt").step == 2 and saver.writes == 2


def test_a_save_that_failed_is_reported_by_the_next_one_and_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saver = Saver(tmp_path / "file" / "checkpoints", in_background=True)
    save(saver, checkpoint())
    with pytest.raises(CheckpointError, match=r"could not save step_00000001.pt"):
        save(saver, checkpoint(2))
    save(saver, checkpoint(3))
    with pytest.raises(CheckpointError, match=r"could not save step_00000003.pt"):
        saver.wait()
    saver.wait()


def saved_in_parts(folder: str) -> list[str]:
    """Save divided weights in the background, change them before they are written, and save once
    more where one of the processes cannot write; what went wrong, on this one."""
    layer = torch.nn.Linear(3, 5)
    torch.nn.init.constant_(layer.weight, 1.0)
    divide(layer, [], torch.device("cpu"))
    state = replace(checkpoint(), towers={"image": layer.state_dict()})
    saver = Held(Path(folder), is_divided=True)
    save(saver, state)
    with torch.no_grad():
        own_slice(layer.weight).fill_(9)  # the next step
    saver.may_write.set()
    saver.wait()
    found = Checkpoint.load(Path(folder) / "last.pt").tower("image")["weight"]
    problems = [] if found.equal(torch.ones(5, 3)) else [f"saved {found}"]
    if runtime.rank() == 1:
        saver.folder = Path(folder) / "last.pt" / "no folder"
    for _ in range(2):
        save(saver, replace(state, step=2))
        try:
            saver.wait()
        except CheckpointError as error:
            problems.append(str(error))
        saver.folder = Path(folder)
    return problems


@pytest.mark.slow
def test_processes_write_their_slices_in_the_background_and_learn_of_each_others_failures(
    tmp_path: Path,
) -> None:
    for problems in run_on_ranks(saved_in_parts, 2, str(tmp_path)):
        (problem,) = problems
        assert problem.startswith("could not save step_00000002.shard-2-of-2.pt"), problem


@pytest.mark.slow
def test_runs_leave_the_same_checkpoints_and_resume_the_same(tmp_path: Path) -> None:
    keys = {key: value for key, value in BACKGROUND.items() if key != "save_in_background"}
    constant = {"name": "constant"}
    expected = tiny_recipe(train={**keys, "ema": 0.9}, schedule=constant)
    plain = train(tmp_path, expected, run="plain")
    recipe = tiny_recipe(train={**BACKGROUND, "ema": 0.9}, schedule=constant)
    run = train(tmp_path, recipe)
    names = sorted(path.name for path in (plain / "checkpoints").iterdir())
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names
    ignored = {"recipe"}
    for name in names:
        one, two = (
            {
                key: value
                for key, value in torch.load(each / "checkpoints" / name, weights_only=True).items()
                if key not in ignored
            }
            for each in (plain, run)
        )
        assert differences(one, two) == []
    cut = {**recipe, "train": {**recipe["train"], "steps": 6}}
    short = train(tmp_path, cut, run="short")
    train(tmp_path, recipe, resume=str(short))
    assert differences(final_state(short)["towers"], final_state(run)["towers"]) == []


def test_saving_in_the_background_where_only_the_end_is_saved_has_no_effect() -> None:
    last_only = "train={save_in_background: true, epochs: 1}"
    (problem,) = problems_with(last_only)
    assert problem.startswith("train.save_in_background: has no effect: only the end of the run")
    assert problems_with(last_only.replace("epochs: 1", "epochs: 1, save_every_minutes: 5")) == []


KILLED = """
import sys, time
from pathlib import Path
import torch
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.saving import Saver

folder = Path(sys.argv[1])
saver = Saver(folder, in_background=True, keep=2)
for step in range(1, 1000):
    weight = torch.full((4_000_000,), float(step))
    towers = {"t": {"w": weight}}
    state = Checkpoint(step=step, recipe="{}", world_size=1, global_batch=1, towers=towers)
    saver.save(state, is_best=False, before_cooldown=False)
"""


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_the_former_one(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            started = folder.is_dir() and len(list(folder.glob("step_*.pt"))) == 2
            if started and list(folder.glob("*.partial")):
                break
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for file in folder.glob("*.pt"):
            state = Checkpoint.load(file)
            assert torch.equal(state.towers["t"]["w"], torch.full((4_000_000,), float(state.step)))
        assert (folder / "last.pt").is_file()
