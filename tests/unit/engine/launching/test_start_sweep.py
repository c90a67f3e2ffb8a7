"""A sweep: checked before its first cell, resumed after a kill, the same cells one by one."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.recipes import differences, final_state, tiny_recipe, write_recipe
from vlkd_cli.app import main
from vlkd_cli.engine.launching import sweep_jobs
from vlkd_cli.reports.comparison import compare
from vlkd_cli.reports.records import read_run

EVAL = {
    "suite": "retrieval",
    "k": [1],
    "every_steps": 10,
    "data": {"reader": "shapes", "split": "val", "num_samples": 12, "size_px": 32},
}
WORDS = "sweep tiny.yaml --grid distillers[0].name=[infonce,siglip,barlow_twins] --seeds 0,1,2"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of 20 steps."""
    recipe = tiny_recipe(
        data={"num_samples": 32},
        train={"epochs": 9, "steps": 20, "save_every_steps": 5, "log_every_steps": 10},
        evals=[EVAL],
    )
    write_recipe(tmp_path, recipe)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def vlkd(words: str) -> int:
    try:
        main(shlex.split(words))
    except SystemExit as left:
        return int(left.code or 0)
    return 0


class InProcess:
    """Replaces `subprocess.Popen`: trains right here."""

    started: list[list[str]] = []
    killed_at: int | None = None

    def __init__(self, words: list[str], **options: Any) -> None:
        self.started.append(words)
        self.environment = options["env"]
        if self.killed_at == len(self.started):
            raise KeyboardInterrupt
        self.returncode = vlkd(shlex.join(words[3:]))

    def poll(self) -> int:
        return self.returncode

    def send_signal(self, number: int) -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    monkeypatch.setattr(InProcess, "started", [])
    monkeypatch.setattr(InProcess, "killed_at", None)
    monkeypatch.setattr(sweep_jobs, "Popen", InProcess)
    monkeypatch.setattr(sweep_jobs, "visible_devices", list)
    return InProcess


def runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/recipe.yaml"))


@pytest.mark.slow
def test_a_killed_sweep_resumes_and_its_figures_are_statistics_by_hand(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    here.killed_at = 5
    assert vlkd(WORDS) == 130
    assert len(runs_in(place / "runs" / "tiny-sweep")) == 4
    here.killed_at, before = None, len(here.started)
    capsys.readouterr()
    assert vlkd(WORDS) == 0
    message = capsys.readouterr().out
    assert "9 cells: 4 finished before, 5 to run" in message and "9 cells: 9 finished" in message
    assert len(here.started) - before == 5
    folder = place / "runs" / "tiny-sweep"
    names = [path.name for path in runs_in(folder)]
    assert names[0] == "000-name=infonce-seed=0" and names[8] == "008-name=barlow_twins-seed=2"
    records = [read_run(path) for path in runs_in(folder)]
    found = compare(records, metric="retrieval.mean_recall", at="last")
    assert [row.summary.n for row in found.rows] == [3, 3, 3]
    by_hand = []
    for number, row in enumerate(found.rows):
        own = records[3 * number : 3 * number + 3]
        values = [dict(run.evaluations[found.metric])[20] for run in own]
        mean = sum(values) / 3
        sd = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
        by_hand.append(values)
        assert row.summary.mean == pytest.approx(mean, rel=1e-12)
        assert row.summary.sd == pytest.approx(sd, rel=1e-9, abs=1e-15)
        if number:
            gaps = [a - b for a, b in zip(values, by_hand[0], strict=True)]
            assert row.difference is not None and row.over == "seeds"
            assert row.difference.mean == pytest.approx(sum(gaps) / 3, rel=1e-9, abs=1e-12)
    assert vlkd(f"compare {folder}") == 0
    assert vlkd(f"report {folder} -o page.html") == 0
    assert "siglip" in (place / "page.html").read_text()


@pytest.mark.slow
def test_index_gives_the_same_cells(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sweep tiny.yaml --grid optimizer.lr=[1e-3,3e-3] --set train.steps=3 --seeds 0,1"
    assert vlkd(f"{words} --folder whole") == 0
    for index in (3, 0, 2, 1):
        assert vlkd(f"{words} --folder single --index {index}") == 0
    first, second = runs_in(place / "whole"), runs_in(place / "single")
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert differences(final_state(one), final_state(other)) == []
    capsys.readouterr()
    assert vlkd(f"{words} --folder single --index 1") == 0
    assert "001-lr=1e-3-seed=1: finished before." in capsys.readouterr().out
    assert vlkd(f"{words} --folder single --list") == 0
    assert capsys.readouterr().out.count("finished") == 4


def test_all_cells_are_checked_before_the_first_starts(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    assert vlkd("sweep tiny.yaml --grid distillers[0].name=[infonce,simregg] --seeds 0,1") == 2
    error = capsys.readouterr().err
    assert error.count("simregg") >= 1 and "(cells 2, 3)" in error
    assert len(error.strip().splitlines()) == 1 and not here.started
    assert error.startswith("--grid distillers[0].name=simregg: ")
    assert vlkd("sweep tiny.yaml --grid optimizer.lrr=[1,2]") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("--grid optimizer.lrr: unknown key.") and line.endswith("(cells 0, 1)")
    assert not (place / "runs").exists()


def test_cells_may_be_appended_and_never_changed(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sweep tiny.yaml --set train.steps=1 --folder s --grid"
    assert vlkd(f"{words} optimizer.lr=[1e-3]") == 0
    assert vlkd(f"{words} optimizer.lr=[1e-3] --seeds 0,1") == 0
    assert len(runs_in(place / "s")) == 2
    capsys.readouterr()
    assert vlkd(f"{words} optimizer.lr=[2e-3] --seeds 0,1") == 2
    assert "cell 0 is optimizer.lr=1e-3 train.seed=0, and would become" in capsys.readouterr().err
    assert vlkd(f"{words} optimizer.lr=[1e-3] --seeds 0") == 2
    assert "its sweep has 2 cells, these words give 1" in capsys.readouterr().err
    assert vlkd(f"{words} optimizer.lr=[1e-3] --seeds 0,1 --set train.steps=2") == 2
    assert "its sweep has another recipe" in capsys.readouterr().err
    cells = json.loads((place / "s" / "sweep.json").read_text())["cells"]
    assert [cell["folder"] for cell in cells] == ["000-seed=0", "001-seed=1"]


@pytest.mark.parametrize(
    "text", ["", "[]", "[" * 100_000, '{"cells": [1], "digest": "a"}', '{"cells": [], "digest": 1}']
)
def test_a_damaged_record_of_cells_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (place / "s").mkdir()
    (place / "s" / "sweep.json").write_text(text)
    assert vlkd("sweep tiny.yaml --folder s --list --grid optimizer.lr=[1e-3]") == 2
    assert "sweep.json is damaged. Remove it" in capsys.readouterr().err


def test_a_failed_cell_is_named_and_the_others_run(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sweep tiny.yaml --set train.steps=1 --folder s --grid data.num_samples=[2,32]"
    assert vlkd(words) == 1
    message = capsys.readouterr().out
    assert "[0] 000-num_samples=2-seed=0: failed: " in message
    assert "2 cells: 1 failed, 1 finished" in message
    assert "the same command tries them again" in message


def test_a_cell_that_another_process_runs_is_left_to_it(
    place: Path, here: type[InProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sweep tiny.yaml --set train.steps=1 --folder s --grid optimizer.lr=[1e-3,2e-3]"
    lock = place / "s" / "locks" / "000-lr=1e-3-seed=0.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"host": os.uname().nodename, "pid": os.getppid()}))
    assert vlkd(words) == 0
    assert [path.name for path in runs_in(place / "s")] == ["001-lr=2e-3-seed=0"]
    assert "1 not started" in capsys.readouterr().out


def test_cores_are_divided_among_jobs_and_gpus_are_given_out(
    place: Path, here: type[InProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []

    class Noting(InProcess):
        def __init__(self, words: list[str], **options: Any) -> None:
            seen.append(options["env"])
            self.words, self.returncode = words, 0

    monkeypatch.setattr(sweep_jobs, "Popen", Noting)
    monkeypatch.setattr(sweep_jobs.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(sweep_jobs, "read_run", lambda path: None)
    monkeypatch.setattr(sweep_jobs, "outcome_line", lambda record: None)
    words = "sweep tiny.yaml --grid optimizer.lr=[1e-3,2e-3] --jobs 2 --folder"
    assert vlkd(f"{words} cpu") == 0
    assert [each["OMP_NUM_THREADS"] for each in seen] == ["3", "3"]
    seen.clear()
    monkeypatch.setattr(sweep_jobs, "visible_devices", lambda: ["4", "5", "7", "9"])
    assert vlkd(f"{words} gpu --gpus-per-job 2") == 0
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == ["4,5", "7,9"]
    assert vlkd(f"{words} gpu --gpus-per-job 3") == 2


@pytest.mark.slow
def test_a_dry_run_steps_once_for_each_shape(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "sweep tiny.yaml --grid distillers[0].name=[infonce,siglip] --dry-run --seeds 0,1"
    assert vlkd(f"{words} --grid optimizer.lr=[1e-3,2e-3]") == 0
    message = capsys.readouterr().out
    assert "[1/2] 000-name=infonce" in message and "[2/2] 004-name=siglip" in message
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--index 4 --grid optimizer.lr=[1]", "--index 4: the sweep has cells 0 to 0."),
        ("--index 0 --list", "--index and --list exclude each other"),
        ("--jobs 2 --list", "--jobs has no effect with --list"),
        ("--search-seed 3", "--search-seed has no effect without --draw"),
        ("--seeds a", "--seeds a: integers of at least 0"),
        ("--folder a --runs b", "--runs b has no effect with --folder"),
        ("--set optimizer.lr=1 --grid optimizer.lr=[1,2]", "--set optimizer.lr=1: has no effect"),
        ("--set train.seed=3 --seeds 0,1", "--set train.seed=3: has no effect"),
        ("--grid distillers[0].weight=[1,1.0]", "cells 0 and 1 are the same recipe (distillers"),
    ],
)
def test_mistakes_end_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert vlkd(f"sweep tiny.yaml {words}") == 2
    assert message in capsys.readouterr().err
