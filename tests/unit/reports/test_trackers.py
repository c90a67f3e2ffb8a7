"""What the sinks of experiment trackers give to their packages' public API."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.fake_trackers import MlflowClient, fake_trackers
from vlkd_cli.errors import MissingPackageError
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import Component
from vlkd_cli.reports.mlflow import MLflowSink
from vlkd_cli.reports.open import Sinks
from vlkd_cli.reports.trackio import TrackioSink


@pytest.fixture(autouse=True)
def trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in fake_trackers().items():
        monkeypatch.setitem(sys.modules, name, module)


def test_trackio_gets_every_value_with_its_step(tmp_path: Path) -> None:
    sinks = Sinks(tmp_path, [Component(name="trackio", project="mine", space="a/b")])  # type: ignore[call-arg]
    sinks.log(10, {"train/loss": 1.5})
    sinks.finish()
    (run,) = sys.modules["trackio"].runs
    assert run.settings == {
        "project": "mine", "name": tmp_path.name, "space_id": "a/b", "resume": "allow",
    }  # fmt: skip
    assert run.logged == [(10, {"train/loss": 1.5})] and run.finished


def test_mlflow_gets_metrics_under_names_that_it_takes(tmp_path: Path) -> None:
    sink = MLflowSink(tmp_path, experiment="mine", uri="http://server")
    sink.log(10, {"eval/retrieval.val.text_to_image_R@1": 0.5, "train/loss": 1.5})
    sink.finish()
    client = MlflowClient.stores["http://server"]
    assert client.experiments == {"mine": "0"}
    (run,) = client.runs.values()
    assert (run["name"], run["experiment"], run["status"]) == (tmp_path.name, "0", "FINISHED")
    assert [(metric.key, metric.value, metric.step) for metric in run["metrics"]] == [
        ("eval/retrieval.val.text_to_image_R_1", 0.5, 10),
        ("train/loss", 1.5, 10),
    ]


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path) -> None:
    MLflowSink(tmp_path).finish()
    resumed = MLflowSink(tmp_path, 5)
    resumed.log(6, {"a": 1.0})
    client = MlflowClient.stores[None]
    assert list(client.runs) == ["run0"] and client.runs["run0"]["status"] == "RUNNING"
    assert [metric.step for metric in client.runs["run0"]["metrics"]] == [6]
    MLflowSink(tmp_path)
    assert list(client.runs) == ["run0", "run1"] and len(client.experiments) == 1


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_package_that_is_missing_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=f"sink '{name}' needs an optional package"):
        make("sink", name, {}, tmp_path)


def test_trackio_stays_local_without_a_space(tmp_path: Path) -> None:
    TrackioSink(tmp_path).finish()
    (run,) = sys.modules["trackio"].runs
    assert (run.settings["space_id"], run.settings["project"]) == (None, "vlkd")
