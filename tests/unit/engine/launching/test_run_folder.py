from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vlkd_cli.data.batch import Skipped
from vlkd_cli.engine.launching.run_folder import RunFolder, existing_run, fresh_run, latest_run
from vlkd_cli.errors import CheckpointError
from vlkd_cli.recipe.schema import Recipe, TowerSpec


def make_run(base: Path, name: str, age: int) -> Path:
    folder = base / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("towers: {}")
    os.utime(folder / "recipe.yaml", (1_000_000 - age, 1_000_000 - age))
    return folder


def test_two_runs_in_one_second_get_two_folders(tmp_path: Path) -> None:
    first = fresh_run("quickstart", tmp_path).create()
    second = fresh_run("quickstart", tmp_path).create()
    assert first.path != second.path


def test_the_latest_run_is_of_the_recipe_asked_for(tmp_path: Path) -> None:
    make_run(tmp_path, "clip-20260101-000000", age=30)
    newer = make_run(tmp_path, "clip-20260102-000000", age=20)
    make_run(tmp_path, "clip-large-20260103-000000", age=10)
    assert latest_run(tmp_path, "clip").path == newer
    assert latest_run(tmp_path).path.name == "clip-large-20260103-000000"


def test_a_missing_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run of recipe 'clip' under"):
        latest_run(tmp_path, "clip")


def test_a_misspelled_run_is_corrected(tmp_path: Path) -> None:
    make_run(tmp_path, "clip-20260101-000000", age=0)
    with pytest.raises(CheckpointError, match="Did you mean 'clip-20260101-000000'"):
        existing_run(Path("clip-20260101-000001"), tmp_path)


def test_a_path_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot write the run folder .*Choose another with --run"
    ):
        RunFolder(tmp_path / "file" / "run").create()


def test_skipped_samples_are_listed_by_name(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    run.note_skipped([Skipped("a,b.jpg", "truncated")], rank=0)
    run.note_skipped([Skipped("c.jpg", "missing")], rank=0)
    run.note_skipped([Skipped("c.jpg", "missing"), Skipped("d\udcff.jpg", "empty")], rank=0)
    RunFolder(tmp_path).note_skipped([Skipped("c.jpg", "missing"), Skipped("e", "gone")], rank=0)
    RunFolder(tmp_path).note_skipped([Skipped("f", "missing"), Skipped("e", "gone")], rank=1)
    assert (tmp_path / "skipped.csv").read_text().splitlines() == [
        "sample,reason",
        '"a,b.jpg",truncated',
        "c.jpg,missing",
        "d\\udcff.jpg,empty",
        "e,gone",
    ]
    assert RunFolder(tmp_path).skipped_summary() == (
        "5 samples could not be read and were replaced or left out, e.g. a,b.jpg: truncated. See"
        f" {tmp_path}/skipped.csv."
    )


def test_a_damaged_list_of_skipped_samples_ends_no_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()
    assert run.skipped_summary() is None
    (tmp_path / "skipped.csv").write_bytes(b'sample,reason\na.jpg,"cut\n\xff\0,half\n"b')
    for _ in range(2):
        RunFolder(tmp_path).note_skipped([Skipped("c.jpg", "missing")], rank=0)
    assert "could not be read" in (RunFolder(tmp_path).skipped_summary() or "")


HOLD = """
import sys, time
from pathlib import Path
from vlkd_cli.engine.launching.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(120)
"""


def test_a_second_run_in_one_folder_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError) as caught, folder.locked():
            pass
        holder.kill()
    assert str(caught.value) == (
        f"{folder.path} is in use by process {holder.pid} on {socket.gethostname()}. Wait for that"
        " run to end, or choose another --run."
    )
    with folder.locked():
        pass


def test_a_full_disk_is_one_line_wherever_the_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run").create()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(CheckpointError, match="run folder .*: No space left .* Free space"):
            folder.note_skipped([Skipped("7.png", "cannot be read")], 0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match="run folder .*: No space left .* Free space"):
            folder.write_recipe(Recipe(towers={"text": TowerSpec(builder="sbert", model="v.txt")}))
