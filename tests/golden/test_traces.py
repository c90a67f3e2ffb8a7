"""The numbers of 20 training steps are those recorded, for every family of recipes.

Recorded by `python -m tests.golden.record_traces`; see there before recording again.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.golden.record_traces import load_traces
from tests.golden.trace_recipes import FAMILIES, STEPS, trace_recipe
from tests.support.traces import (
    read_trace,
    stop_and_resume,
    trace_differences,
    train,
    train_on_ranks,
)

TRACES = load_traces()
RECORDED_WITH = "2.14"
STOP = 9
"""Inside an epoch of every family."""
FAST_ON_TWO = ("infonce", "queue")


OTHER_RANDOM_NUMBERS = {"infonce": "dropout", "protoclip": "trunc_normal_, which starts its heads"}
"""What draws other random numbers in earlier versions of torch, from the same seed."""


def skip_where_it_differs(family: str) -> None:
    if family == "adapter":
        pytest.importorskip("adapters", reason="needs the extra 'adapters'")
    if family in OTHER_RANDOM_NUMBERS and torch.__version__ < TorchVersion(RECORDED_WITH):
        pytest.skip(f"recorded with torch {RECORDED_WITH}: {OTHER_RANDOM_NUMBERS[family]}")


@pytest.mark.parametrize("family", FAMILIES)
def test_one_process_trains_as_recorded(family: str, tmp_path: Path) -> None:
    skip_where_it_differs(family)
    trace = read_trace(train(trace_recipe(family, tmp_path), tmp_path))
    assert trace_differences(TRACES[family]["1"], trace) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stopped_and_resumed_run_trains_as_recorded(family: str, tmp_path: Path) -> None:
    skip_where_it_differs(family)
    halves = stop_and_resume(trace_recipe(family, tmp_path), tmp_path, STOP)
    stopped, resumed = (read_trace(run) for run in halves)
    assert len(stopped["series"]["loss"]) == STOP
    assert trace_differences(TRACES[family]["1"], resumed) == []


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of the families whose traces two processes check in the fast tests."""
    return _trained_on_two(FAST_ON_TWO, tmp_path_factory.mktemp("two_processes"))


@pytest.mark.parametrize("family", FAST_ON_TWO)
def test_two_processes_train_as_recorded(family: str, two_processes: Path) -> None:
    skip_where_it_differs(family)
    trace = read_trace(two_processes / family / "run")
    assert trace_differences(TRACES[family]["2"], trace) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in FAST_ON_TWO])
def test_two_processes_train_the_other_families_as_recorded(family: str, tmp_path: Path) -> None:
    skip_where_it_differs(family)
    trace = read_trace(_trained_on_two((family,), tmp_path) / family / "run")
    assert trace_differences(TRACES[family]["2"], trace) == []


def test_traces_hold_every_step_of_one_and_two_processes() -> None:
    assert set(TRACES) == set(FAMILIES)
    for traces in TRACES.values():
        assert set(traces) == {"1", "2"}
        for trace in traces.values():
            assert {"loss", "learning_rate", "gradient_norm"} <= set(trace["series"])
            assert {len(values) for values in trace["series"].values()} == {STEPS}


def _trained_on_two(families: tuple[str, ...], folder: Path) -> Path:
    train_on_ranks({name: trace_recipe(name, folder / name) for name in families}, folder, 2)
    return folder
