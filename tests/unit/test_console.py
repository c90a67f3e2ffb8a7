"""What is printed, where, and on which rank."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from vlkd_cli import console


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)


def test_tables_without_a_terminal_are_aligned_lines(capsys):
    console.print_table(
        "Results",
        ["suite", "value", "note"],
        [("zero_shot", 0.91234, None), ("knn", 12, "[b]x"), ("sts", 0.5, True)],
    )
    assert capsys.readouterr().out.splitlines() == [
        "Results",
        "suite       value  note",
        "---------  ------  ----",
        "zero_shot  0.9123",
        "knn            12  [b]x",
        "sts           0.5  yes",
    ]


def test_only_the_first_rank_speaks_but_every_rank_may_fail(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    console.say("a")
    console.warn("b")
    console.print_table("", ["c"], [("d",)])
    console.error("e")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "e\n")
    monkeypatch.setenv("RANK", "0")
    console.say("f")
    assert capsys.readouterr().out == "f\n"


def test_warnings_go_to_standard_error(capsys):
    console.warn("[bold] is not markup")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: [bold] is not markup\n")


def test_progress_without_a_terminal_is_plain_lines(capsys):
    with console.training_progress(10, 5) as progress:
        progress.update(1, loss=2.5, lr=1e-3, samples_per_second=123.4, data_wait=0.25)
        progress.update(2, loss=2.4)
        progress.update(10, epoch=1, loss=1.0)
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"epoch 1/2  step 1/10  loss 2\.5000  lr 1\.00e-03  123 samples/s  data wait 25%  0s left",
        first,
    )
    assert last.startswith("epoch 2/2  step 10/10  loss 1.0000")


def test_quiet_progress_prints_messages_only(capsys):
    with console.training_progress(2, 1, quiet=True) as progress:
        progress.update(1, loss=1.0)
        progress.say("saved")
    assert capsys.readouterr().out == "saved\n"


def test_time_left_counts_from_where_a_run_resumed():
    progress = console.TrainingProgress(100, 10, start_step=50)
    progress._started = 0.0
    assert progress._seconds_left(60, now=10.0) == 40.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7800, "2h10m")]
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


def test_a_bar_on_a_terminal_shows_the_same_numbers(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with console.training_progress(10, 5) as progress:
        progress.update(5, loss=0.5, lr=0.1, samples_per_second=10, data_wait=0.0)
        progress.say("[saved]")
    console.print_table("Title", ["a"], [("[x]",)])
    for part in ("step 5/10", "loss 0.5000", "10 samples/s", "[saved]", "Title", "[x]"):
        assert part in screen.getvalue()


def on_a_terminal(code: str, columns: int) -> list[str]:
    """What a program leaves on a terminal, line by line, without escape sequences."""
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", f"from vlkd_cli import console\n{code}"],
        stdout=worker,
        stderr=worker,
        env=environment,
    )
    os.close(worker)
    parts = []
    # At the end of the output, Linux answers with an error instead of nothing.
    with contextlib.suppress(OSError):
        while part := os.read(main, 4096):
            parts.append(part)
    os.close(main)
    assert process.wait() == 0
    text = b"".join(parts).decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")


@pytest.mark.parametrize("columns", [50, 60, 80, 100, 160])
def test_the_bar_stays_and_the_step_is_whole_on_a_narrow_terminal(columns):
    lines = on_a_terminal(
        "with console.training_progress(120000, 500) as progress:\n"
        "    progress.update(\n"
        "        119000, loss=2.5, lr=1e-3, samples_per_second=1234.4, data_wait=0.25)\n"
        "    progress._progress.refresh()\n",
        columns,
    )
    line = next(line for line in reversed(lines) if "step" in line)
    assert line.startswith("epoch 238/240  step 119000/120000 ")
    assert line.count("\u2501") + line.count("\u2578") + line.count("\u257a") >= 10
    assert len(line) <= columns
    assert ("loss 2.5000" in line) == (columns >= 60)
    assert ("data wait 25%" in line) == (columns >= 160)


def test_an_announcement_is_replaced_by_the_next_line():
    lines = on_a_terminal("console.announce('Loading torch ...')\nconsole.say('a')", 80)
    assert lines[0] == "Loading torch ..."
    assert "a" in lines


def test_an_announcement_without_a_terminal_is_nothing(capsys):
    console.announce("Loading torch ...")
    console.say("a")
    assert capsys.readouterr() == ("a\n", "")


def test_messages_show_a_terminals_control_characters_as_escapes(capsys):
    console.error("file \x1b[31mred\x07\nnext\ud800")
    console.warn("\x00")
    assert capsys.readouterr().err == ("file \\x1b[31mred\\x07\nnext\\ud800\nwarning: \\x00\n")


def test_what_an_encoding_lacks_is_written_as_escapes(monkeypatch):
    import io

    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", screen)
    console.say("\u2192 a")
    console.print_table("", ["\u00e4"], [("\ud800",)])
    screen.seek(0)
    assert screen.read().split() == ["\\u2192", "a", "\\xe4", "-", "\\ud800"]
