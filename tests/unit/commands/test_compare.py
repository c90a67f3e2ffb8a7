"""`vlkd runs`, `vlkd compare` and `vlkd report` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.run_folders import make_run
from vlkd_cli.app import build_app


def called(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, value in enumerate((0.3, 0.32)):
        make_run(tmp_path / "runs" / f"a{seed}", seed=seed, values=[0.1, value])
        keys = {"optimizer.lr": 0.1}
        make_run(tmp_path / "runs" / f"b{seed}", seed=seed, values=[0.1, value + 0.1], keys=keys)
    return tmp_path / "runs"


def test_runs_are_listed_as_a_table_and_as_json(runs: Path):
    code, out, _ = called("runs", runs)
    assert code == 0 and "zero_shot.pets.top1" in out and out.count("finished") == 4
    rows = json.loads(called("runs", runs, "--json")[1])
    assert [row["run"] for row in rows] == ["a0", "a1", "b0", "b1"]


def test_a_comparison_is_printed_and_written(runs: Path, tmp_path: Path):
    table = tmp_path / "out.json"
    code, out, _ = called("compare", runs, "--table", table)
    assert code == 0
    assert "lr=0.1" in out and "+0.1000" in out and "2 seeds" in out
    assert "Note: lr=0.1: n = 2: wide by construction." in out
    assert json.loads(table.read_text())["groups"][1]["difference"]["over"] == "seeds"


def test_runs_are_found_by_name_in_the_runs_folder(runs: Path):
    code, out, _ = called("compare", "b0", "a0", "--runs", runs, "--baseline", "a0")
    assert code == 0 and "difference to lr=0.001" in out


def test_a_report_is_written_to_the_given_path(runs: Path, tmp_path: Path):
    code, out, _ = called("report", "a0", "--runs", runs)
    assert (code, out) == (0, f"Report: {runs / 'a0' / 'report.html'}\n")
    code, out, _ = called("report", runs, "-o", tmp_path / "all.html")
    assert (code, out) == (0, f"Report: {tmp_path / 'all.html'}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["compare", "nowhere"], "nowhere"),
        (["compare", "RUNS", "--table", "x.pdf"], "--table x.pdf: write to a file that ends in"),
        (["compare", "RUNS", "--metric", "zero_shot.top2"], "Did you mean 'zero_shot.top1'?"),
        (["compare", "RUNS", "--baseline", "zzz"], "--baseline zzz: no such group"),
        (["runs", "nowhere"], "nowhere: no such folder"),
        (["runs", "EMPTY"], "no runs in it"),
        (["report", "nowhere"], "nowhere"),
        (["report", "RUNS", "-o", "EMPTY"], "is a folder; name a file"),
    ],
)
def test_mistakes_end_in_one_line(runs: Path, tmp_path: Path, words, line):
    (tmp_path / "empty").mkdir()
    places = {"RUNS": runs, "EMPTY": tmp_path / "empty"}
    code, _, err = called(*(places.get(word, word) for word in words))
    assert code == 2 and line in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["runs", "compare", "report"])
def test_tables_and_pages_need_no_torch(runs: Path, command):
    script = (
        "import sys; from vlkd_cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as leaving: assert not leaving.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, command, str(runs)], check=True)
