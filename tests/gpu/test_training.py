"""Training on CUDA devices, with the engine's tiny recipes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.unit.engine.recipes import final_state, tiny_recipe, write_recipe
from vlkd_cli.engine.launching.start import TrainRequest, start_training
from vlkd_cli.reports.csv import read_metrics


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_one_gpu_trains_in_every_precision(tmp_path: Path, precision: str) -> None:
    recipe = write_recipe(
        tmp_path, tiny_recipe(train={"precision": precision, "channels_last": True})
    )
    assert (
        start_training(TrainRequest(recipe=recipe, run=tmp_path / "run", gpus=1, quiet=True)) == 0
    )
    assert all(math.isfinite(value) for _, value in read_metrics(tmp_path / "run")["train/loss"])


@pytest.mark.gpu(count=2)
def test_two_gpus_train_together(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_recipe(train={"sync_batch_norm": True}))
    assert (
        start_training(TrainRequest(recipe=recipe, run=tmp_path / "run", gpus=2, quiet=True)) == 0
    )
    assert final_state(tmp_path / "run")["world_size"] == 2


@pytest.mark.gpu
def test_the_first_losses_on_gpu_and_cpu_agree(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path, tiny_recipe(data={"augment": {"name": "none"}}, train={"steps": 3})
    )
    for name, options in (("gpu", {"gpus": 1}), ("cpu", {"cpu_workers": 1})):
        assert (
            start_training(TrainRequest(recipe=recipe, run=tmp_path / name, quiet=True, **options))
            == 0
        )  # type: ignore[arg-type]
    gpu, cpu = (read_metrics(tmp_path / name)["train/loss"][0][1] for name in ("gpu", "cpu"))
    assert gpu == pytest.approx(cpu, rel=0.2)  # dropout draws differ between devices
