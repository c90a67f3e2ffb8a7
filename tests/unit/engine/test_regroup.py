"""A run that resumes on another number of processes sees the same global batches."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from open_clip.transformer import PatchDropout

from tests.support.data_sets import webdataset_stream
from tests.unit.engine.recipes import TEXT, final_state, tiny_recipe, write_recipe
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.engine.regroup import drops
from vlkd_cli.errors import CheckpointError
from vlkd_cli.reports.csv import read_metrics

ROOT = Path(__file__).resolve().parents[3]
MIDDLE = 7


def _checkpoint(**fields: Any) -> Checkpoint:
    return Checkpoint(
        **{"step": 1, "recipe": "{}", "world_size": 4, "global_batch": 24, "towers": {}, **fields}
    )


@pytest.mark.parametrize(("processes", "rows"), [(1, 24), (3, 8), (4, 6), (24, 1)])
def test_the_global_batch_is_divided_among_the_processes(processes: int, rows: int) -> None:
    assert _checkpoint().rows_per_process(processes) == rows


def test_batches_that_cannot_be_divided_name_the_numbers_that_can() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"batches of 24 samples cannot be divided among 5 processes\. It was trained on 4;"
        r" resume it with 2, 3, 4, 6\.",
    ):
        _checkpoint().rows_per_process(5)


@pytest.mark.parametrize(
    ("module", "is_random"),
    [
        (torch.nn.Dropout(0.1), True),
        (torch.nn.Dropout(0.0), False),
        (torch.nn.MultiheadAttention(8, 2, dropout=0.1), True),
        (torch.nn.MultiheadAttention(8, 2), False),
        (PatchDropout(0.5), True),
        (torchvision.ops.StochasticDepth(0.2, "row"), True),
        (torch.nn.LayerNorm(8), False),
    ],
)
def test_what_a_module_leaves_out_at_random_is_found(module: torch.nn.Module, is_random: bool):
    assert drops(module) == is_random


def _vlkd(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vlkd_cli", "train", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "VLKD_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _recipe(
    folder: Path, dropout: float, data: Mapping[str, Any] | None = None, **keys: int
) -> str:
    head = {"name": "linear", "width": 16, "dropout": dropout}
    recipe = tiny_recipe(
        towers={"text": {**TEXT, "head": head}},
        data={"num_samples": 240},
        train={
            "epochs": 2,
            "batch_size": 6,
            "ema": 0.9,
            "save_every_steps": 1,
            "keep": 99,
            **keys,
        },
    )
    return write_recipe(folder, {**recipe, "data": data or recipe["data"]})


def _rewound(run: Path, name: str) -> Path:
    """A copy of a run as it was at step `MIDDLE`, in the middle of an epoch of 10."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    checkpoints = copy / "checkpoints"
    for path in checkpoints.glob("step_*.pt"):
        if int(path.stem.split("_")[1]) > MIDDLE:
            path.unlink()
    (checkpoints / "last.pt").unlink()
    shutil.copy(checkpoints / f"step_{MIDDLE:08d}.pt", checkpoints / "last.pt")
    return copy


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("keys", [{}, {"accumulate": 2, "chunk": 4}], ids=["whole", "chunks"])
def test_a_run_of_four_processes_resumes_on_two_and_three_and_one(
    tmp_path: Path, keys: dict[str, int]
) -> None:
    recipe = _recipe(tmp_path, dropout=0.0, **keys)
    _vlkd(tmp_path, recipe, "--run", "four", "--cpu-workers", "4")
    expected = dict(read_metrics(tmp_path / "four")["train/loss"])
    steps = 20 // keys.get("accumulate", 1)
    for processes in (1, 2, 3):
        run = _rewound(tmp_path / "four", f"on{processes}")
        out = _vlkd(tmp_path, "--resume", str(run), "--cpu-workers", str(processes))
        rows = f"24 rows a batch: 6 on each of 4 processes before, {24 // processes} on each of"
        assert rows in out and "will differ" not in out
        losses = dict(read_metrics(run)["train/loss"])
        assert losses.keys() == expected.keys()
        for step in range(MIDDLE + 1, steps + 1):
            assert losses[step] == pytest.approx(expected[step], rel=1e-6), (processes, step)
        assert final_state(run)["world_size"] == processes
        assert final_state(run)["global_batch"] == 24


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stream_of_two_processes_resumes_on_three_and_then_on_one(tmp_path: Path) -> None:
    data = webdataset_stream(tmp_path / "shards", shards=16, samples=8, broken={21, 100})
    data |= {"augment": {"name": "none"}, "max_broken_share": 0.2}
    recipe = _recipe(tmp_path, dropout=0.0, data=data)
    _vlkd(tmp_path, recipe, "--run", "two", "--cpu-workers", "2")
    run = tmp_path / "two"
    expected = dict(read_metrics(run)["train/loss"])
    for processes in (3, 1):
        run = _rewound(run, f"on{processes}")
        _vlkd(tmp_path, "--resume", str(run), "--cpu-workers", str(processes))
        losses = dict(read_metrics(run)["train/loss"])
        assert losses.keys() == expected.keys() and max(losses) == 20
        for step, loss in losses.items():
            assert loss == pytest.approx(expected[step], rel=1e-6), (processes, step)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_cannot_stay_equal_is_reported(tmp_path: Path) -> None:
    _vlkd(tmp_path, _recipe(tmp_path, dropout=0.1), "--run", "two", "--cpu-workers", "2")
    out = _vlkd(tmp_path, "--resume", str(_rewound(tmp_path / "two", "one")))
    assert "Losses will differ from those of 2 processes: each process samples its own" in out
