"""`vlkd submit-elevater`: which run it takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlkd_cli.app import build_app


def output_of(*words: str) -> str:
    result = CliRunner().invoke(build_app(["submit-elevater"]), ["submit-elevater", *words])
    assert result.exit_code == 2
    return result.stderr


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """Two runs without predictions, of which `b` is the newer."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").touch()
        os.utime(folder / "recipe.yaml", (number, number))
    return tmp_path / "runs"


def test_without_an_argument_it_takes_the_newest_run(runs):
    assert output_of().startswith("runs/b: no ELEVATER predictions.")
    assert output_of("--runs", str(runs)).startswith(f"{runs}/b: no ELEVATER predictions.")


def test_a_run_is_found_by_name_and_by_folder(runs):
    assert output_of("a").startswith("runs/a: no ELEVATER predictions.")
    assert output_of("runs/a").startswith("runs/a: no ELEVATER predictions.")


def test_without_runs_it_shows_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_of() == "no run under runs/. Start one with `vlkd train`, or name its folder.\n"


def test_a_path_that_is_not_a_folder_is_one_line(runs):
    assert output_of("c").startswith("'c' is not a folder.")
