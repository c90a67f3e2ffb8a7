"""Tables and sweeps whose processes are killed with SIGKILL: the same command computes what is
missing, and the numbers are those of one that was not killed."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.image_folders import make_image_root
from tests.unit.engine.recipes import differences, final_state, tiny_recipe, train, write_recipe
from vlkd_cli.app import main
from vlkd_cli.claims import process_exists
from vlkd_cli.reports.comparison import compare
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.state import read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KILLED_AFTER_FIVE = """\
import os, signal, sys
from vlkd_cli.app import main
from vlkd_cli.engine.tables import compute
write, written = compute.write_result, []
def counted(*arguments):
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(arguments)
    return write(*arguments)
compute.write_result = counted
main(sys.argv[1:])
"""
SWEEP = "sweep tiny.yaml --grid optimizer.lr=[1e-3,2e-3,3e-3] --seeds 0,1,2 --folder sweep"


def program(place: Path, *words: str) -> subprocess.Popen[bytes]:
    """A Python process of its own, in this folder."""
    root = str(Path(__file__).parents[4])
    environment = {**os.environ, "PYTHONPATH": root, "VLKD_CACHE": str(place / "cache")}
    return subprocess.Popen(
        [sys.executable, *words], cwd=place, env=environment, stdout=subprocess.PIPE
    )


def output_of(process: subprocess.Popen[bytes]) -> str:
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output
    return output.decode()


def test_a_table_killed_after_five_of_twelve_cells_computes_seven(tmp_path: Path) -> None:
    recipe = tiny_recipe(data={"num_samples": 16}, train={"steps": 2})
    for seed, name in enumerate("abc"):
        train(tmp_path, {**recipe, "train": {**recipe["train"], "seed": seed}}, f"runs/{name}")
    make_image_root(tmp_path / "data", ("s1", "s2", "s3", "s4"))
    words = "eval runs/a runs/b runs/c --data data --suite zero_shot --datasets s1,s2,s3,s4"
    cut = [*shlex.split(words), "--table", "cut.csv"]

    killed = program(tmp_path, "-c", KILLED_AFTER_FIVE, *cut)
    killed.communicate(timeout=400)
    assert killed.returncode == -signal.SIGKILL
    results = "runs/*/results/step_*/zero_shot-*.json"
    assert len(list(tmp_path.glob(results))) == 5 and not (tmp_path / "cut.csv").exists()
    assert len(list(tmp_path.glob("runs/*/results/**/*.lock"))) == 1

    output = output_of(program(tmp_path, "-m", "vlkd_cli", *cut))
    assert "12 cells: 5 done before, 7 to compute (3 models, 4 data sets)" in output
    assert not list(tmp_path.glob("runs/*/results/**/*.lock"))
    for file in tmp_path.glob("runs/*/results/step_*/*"):
        file.unlink()
    output_of(program(tmp_path, "-m", "vlkd_cli", *shlex.split(words), "--table", "whole.csv"))
    with (tmp_path / "whole.csv").open() as whole, (tmp_path / "cut.csv").open() as resumed:
        assert list(csv.reader(resumed)) == list(csv.reader(whole))


def three_by_two(place: Path) -> list[str]:
    """Three runs and two data sets, and the words that measure them in two processes."""
    recipe = tiny_recipe(data={"num_samples": 16}, train={"steps": 2})
    for seed, name in enumerate("abc"):
        train(place, {**recipe, "train": {**recipe["train"], "seed": seed}}, f"runs/{name}")
    make_image_root(place / "data", ("s1", "s2"))
    words = "eval runs/a runs/b runs/c --data data --suite zero_shot,knn --datasets s1,s2"
    return ["-m", "vlkd_cli", *shlex.split(words), "--table", "out.csv", "--jobs", "2"]


def first_claim(place: Path, process: subprocess.Popen[bytes]) -> int:
    """The process that is the first to work on a cell."""
    end = time.monotonic() + 300
    while True:
        for lock in place.glob("runs/*/results/**/*.lock"):
            with contextlib.suppress(OSError, ValueError):
                return int(json.loads(lock.read_text())["pid"])
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)


def test_cells_of_a_worker_that_is_killed_are_measured_by_the_other(tmp_path: Path) -> None:
    words = three_by_two(tmp_path)
    process = program(tmp_path, *words)
    os.kill(first_claim(tmp_path, process), signal.SIGKILL)
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert len(list(tmp_path.glob("runs/*/results/step_*/*.json"))) == 12
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == 5 and all(all(row[1:5]) for row in rows[2:])
    assert not list(tmp_path.glob("runs/*/results/**/*.lock"))


def test_sigterm_stops_a_table_with_its_processes(tmp_path: Path) -> None:
    words = three_by_two(tmp_path)
    process = program(tmp_path, *words)
    worker = first_claim(tmp_path, process)
    process.terminate()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert not process_exists(worker)
    assert not list(tmp_path.glob("runs/*/results/**/*.lock"))
    assert "12 cells: " in output_of(program(tmp_path, *words))
    assert len(list(tmp_path.glob("runs/*/results/step_*/*.json"))) == 12


def killed_in_cell(place: Path, name: str) -> None:
    """Start the sweep and kill it, and the job that it started, once this cell has saved."""
    process = program(place, "-m", "vlkd_cli", *shlex.split(SWEEP))
    end = time.monotonic() + 600
    while not (place / "sweep" / name / "checkpoints" / "last.pt").is_file():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.kill()
    state = read_state(place / "sweep" / name)
    assert state is not None and state.pid
    if state.state == "running":
        os.kill(state.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def test_a_sweep_of_nine_killed_in_the_fourth_cell_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        data={"num_samples": 32},
        train={"epochs": 9, "steps": 20, "save_every_steps": 1, "log_every_steps": 10},
        evals=[
            {
                "suite": "retrieval",
                "k": [1],
                "every_steps": 10,
                "data": {"reader": "shapes", "split": "val", "num_samples": 12, "size_px": 32},
            }
        ],
    )
    write_recipe(tmp_path, recipe)
    name = "003-lr=2e-3-seed=0"
    killed_in_cell(tmp_path, name)
    end = time.monotonic() + 60
    while (before := read_state(tmp_path / "sweep" / name)) is None or before.state != "killed":
        assert time.monotonic() < end, before
        time.sleep(0.1)

    output = output_of(program(tmp_path, "-m", "vlkd_cli", *shlex.split(SWEEP)))
    assert "9 cells: 3 finished before, 6 to run" in output and "9 cells: 9 finished" in output
    cells = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["cells"]
    folders = [tmp_path / "sweep" / cell["folder"] for cell in cells]
    assert [read_state(folder).state for folder in folders] == ["finished"] * 9  # type: ignore[union-attr]

    # The cell that was killed ends as one that was not.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([*shlex.split(SWEEP.replace("--folder sweep", "--folder single")), "--index", "3"])
    assert not left.value.code
    assert differences(final_state(folders[3]), final_state(tmp_path / "single" / name)) == []

    records = [read_run(folder) for folder in folders]
    found = compare(records, metric="retrieval.mean_recall", at="last")
    for number, row in enumerate(found.rows):
        own = records[3 * number : 3 * number + 3]
        values = [dict(run.evaluations[found.metric])[20] for run in own]
        mean = math.fsum(values) / 3
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 2)
        assert row.summary.n == 3
        assert row.summary.mean == pytest.approx(mean, rel=1e-12)
        assert row.summary.sd == pytest.approx(spread, rel=1e-9, abs=1e-15)
