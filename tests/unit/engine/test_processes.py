"""vlkd as a program: several workers, failures, kills and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.engine.recipes import differences, final_state, tiny_recipe, write_recipe
from vlkd_cli.reports.csv import read_metrics

ROOT = Path(__file__).resolve().parents[3]
DATA = {"augment": {"name": "none"}}
# Starting several processes takes its time on a machine that has other work.
pytestmark = pytest.mark.timeout(900)


def start(
    folder: Path, *words: str, new_group: bool = False, **environment: str
) -> subprocess.Popen[str]:
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    settings = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "VLKD_CACHE": str(folder / "cache"),
        **environment,
    }
    command = [sys.executable, "-m", "vlkd_cli", *words]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_group,
    )


def vlkd(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    process = start(folder, *words, **environment)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def recipe_of(folder: Path, **sections: Any) -> str:
    return write_recipe(folder, tiny_recipe(**{"data": DATA, **sections}))


@pytest.mark.slow
def test_two_workers_train_what_one_process_trains_on_both_their_batches(tmp_path: Path) -> None:
    towers = {"text": tiny_recipe()["towers"]["text"] | {"head": {"name": "linear", "width": 16}}}
    evals = [
        {
            "suite": "zero_shot",
            "data": {"reader": "shapes", "split": "val", "num_samples": 20, "size_px": 32},
        }
    ]
    recipe = recipe_of(
        tmp_path,
        towers=towers,
        evals=evals,
        train={"epochs": 1},
        optimizer={"name": "sgd", "lr": 0.1},
    )
    code, out, err = vlkd(tmp_path, "train", recipe, "--cpu-workers", "2", "--run", "two")
    assert code == 0, err
    assert "Results" in out and out.count("Run folder") == 1
    assert (tmp_path / "two" / "logs" / "rank_1.log").is_file()
    code, _, err = vlkd(tmp_path, "train", recipe, "--run", "one", "--set", "train.batch_size=16")
    assert code == 0, err
    two, one = (final_state(tmp_path / name)["towers"] for name in ("two", "one"))
    for tower in one:
        for name, value in one[tower].items():
            torch.testing.assert_close(two[tower][name], value, rtol=1e-4, atol=1e-6)
    losses = [
        [value for _, value in read_metrics(tmp_path / name)["train/loss"]]
        for name in ("two", "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_failed_worker_is_one_line_with_rank_step_and_cause(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path, distillers=[{"name": "tests.support.failing:FailsAt", "step": 3, "on_rank": 1}]
    )
    code, _, err = vlkd(tmp_path, "train", recipe, "--cpu-workers", "2", "--run", "run", "--quiet")
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith(
        "worker 1 failed at step 3: RuntimeError: the projector caught fire. Output of every"
        " worker: "
    )
    assert "Traceback" not in err
    assert "second line" in (tmp_path / "run" / "logs" / "rank_1.log").read_text()


@pytest.mark.slow
def test_a_mistake_that_every_worker_meets_is_one_line(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"batch_size": 40})
    code, _, err = vlkd(tmp_path, "train", recipe, "--cpu-workers", "2", "--run", "run")
    assert code == 2
    assert err.splitlines() == [
        "an epoch has 48 samples, fewer than the 80 of one step (2 x batch size 40). Lower"
        " train.batch_size or the number of processes, or raise data.episode_samples."
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["2", "3", "4"])
def test_a_run_killed_at_any_step_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, workers: str
) -> None:
    distillers = [{"name": "tests.support.failing:DiesAt", "step": 8}]
    recipe = recipe_of(
        tmp_path,
        data={**DATA, "num_samples": 96},
        distillers=distillers,
        train={"save_every_steps": 5, "save_every_epochs": None, "ema": 0.9, "batch_size": 4},
    )
    words = ("train", recipe, "--cpu-workers", workers)
    marker = {"VLKD_TEST_MARKER": str(tmp_path / "died")}
    code, _, err = vlkd(tmp_path, *words, "--run", "cut", **marker)
    assert code == 2 and "worker 0 was killed by SIGKILL" in err
    assert final_state(tmp_path / "cut")["step"] == 5
    code, out, err = vlkd(tmp_path, *words, "--resume", "cut", **marker)
    assert code == 0, err
    assert "at step 5 of" in out
    code, _, err = vlkd(tmp_path, *words, "--run", "whole", **marker)
    assert code == 0, err
    assert differences(final_state(tmp_path / "whole"), final_state(tmp_path / "cut")) == []


@pytest.mark.slow
def test_accumulation_on_several_processes_prints_nothing_of_ddp(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"steps": 2, "accumulate": 2})
    code, out, err = vlkd(tmp_path, "train", recipe, "--cpu-workers", "2", "--run", "run")
    assert code == 0 and "find_unused_parameters" not in out + err
    logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").glob("*.log"))
    assert "find_unused_parameters" not in logs


@pytest.mark.slow
def test_the_agent_starts_a_failed_group_again_from_its_checkpoint(tmp_path: Path) -> None:
    distillers = [{"name": "tests.support.failing:DiesAt", "step": 8}]
    recipe = recipe_of(
        tmp_path,
        data={**DATA, "num_samples": 96},
        distillers=distillers,
        train={"save_every_steps": 5, "save_every_epochs": None},
    )
    marker = str(tmp_path / "died")
    options = ("--cpu-workers", "2", "--run", "run", "--max-restarts", "1")
    code, out, err = vlkd(tmp_path, "train", recipe, *options, VLKD_TEST_MARKER=marker)
    assert code == 0, err
    assert "at step 5 of" in out and final_state(tmp_path / "run")["step"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_saves_and_the_run_resumes_with_the_same_numbers(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    recipe = recipe_of(
        tmp_path,
        distillers=[{"name": "tests.support.failing:Slow"}],
        train={"save_every_epochs": None},
    )
    options = ["--cpu-workers", str(workers)]
    process = start(tmp_path, "train", recipe, "--run", "cut", *options)
    metrics = tmp_path / "cut" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and "\n3," in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Continue with --resume" in out and "Traceback" not in err
    stopped = final_state(tmp_path / "cut")["step"]
    assert 3 <= stopped < 12
    if workers == 2:
        assert "forcefully" not in (tmp_path / "cut" / "logs" / "agent.log").read_text()
    quick = ("--set", "distillers[0].seconds=0")
    if workers == 2:
        return
    code, out, err = vlkd(tmp_path, "train", recipe, "--resume", "cut", *options)
    assert code == 0, err
    code, _, err = vlkd(tmp_path, "train", recipe, "--run", "whole", *quick)
    assert code == 0, err
    whole, resumed = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    for state in (whole, resumed):
        state.pop("recipe")  # they differ in how long a step sleeps
    assert differences(whole, resumed) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_to_the_whole_group_stops_at_a_safe_place_too(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    recipe = recipe_of(
        tmp_path, distillers=[{"name": "tests.support.failing:Slow"}], data={**DATA, "workers": 2}
    )
    process = start(
        tmp_path, "train", recipe, "--run", "run", "--cpu-workers", str(workers), new_group=True
    )
    metrics = tmp_path / "run" / "metrics.csv"
    while not (metrics.is_file() and "\n2," in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Continue with --resume" in out and 2 <= final_state(tmp_path / "run")["step"] < 12
    if workers == 2:
        assert "forcefully" not in (tmp_path / "run" / "logs" / "agent.log").read_text()


@pytest.mark.slow
def test_torchrun_is_joined(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"epochs": 1})
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "--",
        "vlkd_cli",
    ]
    words = ["train", recipe, "--cpu-workers", "2", "--run", "run", "--quiet"]
    done = subprocess.run(
        [*command, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert final_state(tmp_path / "run")["world_size"] == 2


@pytest.mark.slow
def test_two_nodes_meet(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"epochs": 1})
    shared = (
        "train",
        recipe,
        "--cpu-workers",
        "1",
        "--nodes",
        "2",
        "--rendezvous",
        "127.0.0.1:29611",
        "--run",
        "run",
        "--quiet",
    )
    nodes = [start(tmp_path, *shared, "--node-rank", str(rank)) for rank in (0, 1)]
    for node in nodes:
        _, err = node.communicate(timeout=600)
        assert node.returncode == 0, err
    assert final_state(tmp_path / "run")["world_size"] == 2
