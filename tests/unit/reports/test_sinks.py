from __future__ import annotations

from pathlib import Path

import pytest

from vlkd_cli.recipe.schema import Component
from vlkd_cli.reports.csv import CSVSink, read_metrics
from vlkd_cli.reports.open import Sinks
from vlkd_cli.reports.tensorboard import TensorBoardSink


def test_the_record_reads_back_what_was_logged(tmp_path: Path) -> None:
    sink = CSVSink(tmp_path)
    sink.log(1, {"train/loss": 2.5})
    sink.log(2, {"train/loss": 0.1, "eval/x": 1e-30})
    sink.finish()
    assert read_metrics(tmp_path) == {"train/loss": [(1, 2.5), (2, 0.1)], "eval/x": [(2, 1e-30)]}


def test_resuming_drops_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    sink = CSVSink(tmp_path)
    for step in (1, 2, 3):
        sink.log(step, {"loss": float(step)})
    sink.finish()
    resumed = CSVSink(tmp_path, 2)
    resumed.log(3, {"loss": 30.0})
    resumed.finish()
    assert read_metrics(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path: Path) -> None:
    sink = CSVSink(tmp_path)
    sink.log(1, {"loss": 1.0})
    sink.finish()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,lo")
    assert read_metrics(tmp_path) == {"loss": [(1, 1.0)]}


def test_tensorboard_event_files_hold_the_values(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = TensorBoardSink(tmp_path)
    sink.log(1, {"train/loss": 2.5})
    sink.log(7, {"train/loss": 0.5})
    sink.finish()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 2.5),
        (7, 0.5),
    ]


def test_the_csv_is_written_whatever_the_recipe_names(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sinks = Sinks(tmp_path, ["tensorboard"])
    sinks.log(1, {"loss": 1.0})
    sinks.finish()
    assert read_metrics(tmp_path) == {"loss": [(1, 1.0)]}


@pytest.mark.slow
def test_wandb_keeps_an_offline_run_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    sinks = Sinks(tmp_path, [Component(name="wandb", project="vlkd-test", mode="offline")])  # type: ignore[call-arg]
    sinks.log(1, {"loss": 1.0})
    sinks.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
