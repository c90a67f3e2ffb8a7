"""`state.json`: written whole, at most every 30 seconds, and read with what became of its
process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlkd_cli.engine.launching.run_record import recorded
from vlkd_cli.reports.state import RunState, StateFile, read_state


def written(folder: Path) -> dict[str, object]:
    return json.loads((folder / "state.json").read_text())


def write(folder: Path, **keys: object) -> None:
    state = RunState("running", host=os.uname().nodename, pid=os.getpid())
    (folder / "state.json").write_text(json.dumps({**state.__dict__, **keys}))


def test_a_run_is_running_then_finished(tmp_path: Path):
    with recorded(tmp_path, resumed=False, first=True):
        assert read_state(tmp_path).state == "running"
        StateFile(tmp_path).proceed(7, 20, write=True)
    found = read_state(tmp_path)
    assert (found.state, found.step, found.total_steps, found.error) == ("finished", 7, 20, None)
    assert found.pid == os.getpid() and found.started <= found.updated


def test_a_signal_is_a_stop(tmp_path: Path):
    with recorded(tmp_path, resumed=False, first=True) as record:
        record.status = 15
    assert read_state(tmp_path).state == "stopped"


def test_an_error_is_recorded_and_raised_again(tmp_path: Path):
    with pytest.raises(RuntimeError), recorded(tmp_path, resumed=False, first=True):
        raise RuntimeError("no more data")
    assert (read_state(tmp_path).state, read_state(tmp_path).error) == ("failed", "no more data")


def test_other_processes_write_nothing(tmp_path: Path):
    with recorded(tmp_path, resumed=False, first=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_preserves_its_best_and_drops_its_error(tmp_path: Path):
    with pytest.raises(RuntimeError), recorded(tmp_path, resumed=False, first=True):
        StateFile(tmp_path).note_best(0.5, 10)
        raise RuntimeError
    with recorded(tmp_path, resumed=True, first=True):
        found = read_state(tmp_path)
        assert (found.best, found.best_step, found.step, found.error) == (0.5, 10, 10, None)
    with recorded(tmp_path, resumed=False, first=True):
        assert read_state(tmp_path).best is None


def test_progress_is_written_at_most_every_30_seconds(tmp_path: Path):
    file = StateFile(tmp_path)
    file.proceed(1, 10)
    file.proceed(2, 10)
    assert written(tmp_path)["step"] == 1
    file.proceed(3, 10, write=True)
    assert written(tmp_path)["step"] == 3


def test_a_running_run_whose_process_is_gone_was_killed(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write(tmp_path, pid=gone.pid)
    assert read_state(tmp_path).state == "killed"
    write(tmp_path, pid=os.getpid())
    assert read_state(tmp_path).state == "running"


@pytest.mark.parametrize(
    ("updated", "state"),
    [("2020-01-01T00:00:00+00:00", "killed"), ("2999-01-01T00:00:00+00:00", "running")],
)
def test_on_another_host_the_age_of_the_file_decides(tmp_path: Path, updated, state):
    write(tmp_path, host="elsewhere", pid=1, updated=updated)
    assert read_state(tmp_path).state == state


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"state": "running', '{"state": "asleep"}', "\x00"),
        *('{"state": "finished", "step": "ten"}', '{"state": "finished", "updated": 5}'),
    ],
)
def test_a_damaged_file_has_no_state(tmp_path: Path, text):
    assert read_state(tmp_path) is None
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path) is None


def test_unknown_keys_of_a_later_version_are_ignored(tmp_path: Path):
    write(tmp_path, state="finished", color="green")
    assert read_state(tmp_path).state == "finished"


def test_a_folder_that_is_gone_costs_a_warning_only(tmp_path: Path, capsys):
    StateFile(tmp_path / "gone").end("finished")
    assert "state.json cannot be written" in capsys.readouterr().err
