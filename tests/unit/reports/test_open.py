from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vlkd_cli.errors import CheckpointError
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


class _Killed(BaseException):
    """Replaces SIGKILL."""


@pytest.mark.parametrize("at", ["writerows", "fsync", "replace"])
def test_a_kill_while_resuming_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    sink = CSVSink(tmp_path)
    for step in range(1, 101):
        sink.log(step, {"loss": float(step)})
    sink.finish()

    def killed(*arguments: object) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        if at == "fsync":
            patch.setattr("os.fsync", killed)
        elif at == "replace":
            patch.setattr(Path, "replace", killed)
        else:
            real = csv.reader

            def read_half(lines: list[str]) -> object:
                if lines[0].startswith("50,"):
                    raise _Killed
                return real(lines)

            patch.setattr("csv.reader", read_half)
        with pytest.raises(_Killed):
            CSVSink(tmp_path, 90)
    assert read_metrics(tmp_path)["loss"] == [(step, float(step)) for step in range(1, 101)]
    CSVSink(tmp_path, 90).finish()
    assert read_metrics(tmp_path)["loss"] == [(step, float(step)) for step in range(1, 91)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\xfe\x80 binary\n",
        b"2,loss," + b"9" * 200_000 + b"\n",
        b'2,"loss,3\n',
        b"a,b,c\n",
        b"2\n",
    ],
    ids=["binary", "long field", "open quote", "no numbers", "too few"],
)
def test_a_damaged_record_resumes_with_its_readable_rows_and_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    content = b"step,name,value\r\n1,loss,1.0\r\n" + damage + b"3,loss,3.0\r\n"
    (tmp_path / "metrics.csv").write_bytes(content)
    assert read_metrics(tmp_path) == {"loss": [(1, 1.0), (3, 3.0)]}
    sink = CSVSink(tmp_path, 3)
    sink.log(4, {"loss": 4.0})
    sink.finish()
    assert read_metrics(tmp_path) == {"loss": [(1, 1.0), (3, 3.0), (4, 4.0)]}
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
    (line,) = capsys.readouterr().err.splitlines()
    assert "metrics.csv: line 3 is not step,name,value (1 such lines)" in line


@pytest.mark.parametrize("resume_step", [None, 3])
def test_a_folder_instead_of_the_record_is_one_line(
    tmp_path: Path, resume_step: int | None
) -> None:
    (tmp_path / "metrics.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics.csv: Is a directory\. Free"):
        CSVSink(tmp_path, resume_step)
    with pytest.raises(CheckpointError, match=r"metrics.csv cannot be read: Is a directory"):
        read_metrics(tmp_path)


def test_a_full_disk_while_logging_is_one_line(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    sink = CSVSink(tmp_path)
    sink._file.close()
    sink._file = full.open("a", encoding="utf-8")
    sink._writer = csv.writer(sink._file)
    with pytest.raises(
        CheckpointError,
        match=r"cannot write .*metrics.csv: No space left .* continue with --resume",
    ):
        sink.log(1, {"loss": 1.0})


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
def test_wandb_stores_an_offline_run_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    sinks = Sinks(tmp_path, [Component(name="wandb", project="vlkd-test", mode="offline")])  # type: ignore[call-arg]
    sinks.log(1, {"loss": 1.0})
    sinks.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
