"""`vlkd recipes`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.support.recipes import SMALL
from vlkd_cli.app import build_app
from vlkd_cli.recipe.shipped import shipped_recipe, shipped_recipes, summary_of


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    app = build_app(["recipes"])
    return lambda *words: CliRunner().invoke(app, ["recipes", *words])


def test_list_shows_every_recipe_with_its_first_line(run):
    out = run("list").stdout
    assert len(shipped_recipes()) >= 1
    for name, path in shipped_recipes().items():
        assert name in out
        assert summary_of(path) in out


def test_show_prints_the_file(run):
    assert run("show", "quickstart").stdout == shipped_recipe("quickstart").read_text()


def test_copy_writes_a_file_and_leaves_an_existing_one_alone(run):
    assert run("copy", "quickstart").exit_code == 0
    assert Path("quickstart.yaml").read_text() == shipped_recipe("quickstart").read_text()
    Path("quickstart.yaml").write_text("mine")
    again = run("copy", "quickstart")
    assert (again.exit_code, again.stderr) == (
        2,
        "quickstart.yaml exists already. Remove it, or name another file.\n",
    )
    assert Path("quickstart.yaml").read_text() == "mine"
    assert run("copy", "quickstart", "new/mine.yaml").exit_code == 0
    assert Path("new/mine.yaml").is_file()
    assert run("copy", "quickstart", "new").exit_code == 0
    assert Path("new/quickstart.yaml").is_file()


def test_copy_to_a_place_that_cannot_be_written_is_one_line(run):
    Path("file").write_text("")
    result = run("copy", "quickstart", "file/x.yaml")
    assert result.exit_code == 2
    assert result.stderr.startswith("cannot write file/x.yaml: ")
    assert result.stderr.endswith(". Choose another path.\n")


def test_check_reports_all_problems_of_all_files(run):
    Path("good.yaml").write_text(SMALL)
    Path("bad.yaml").write_text(SMALL + "optimzer: {}\n")
    Path("worse.yaml").write_text("towers: {}\n")
    result = run("check", "good.yaml", "bad.yaml", "worse.yaml")
    assert result.exit_code == 2
    assert result.stdout == "good.yaml: fine\n"
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == [
        "bad.yaml:7",
        "worse.yaml:1",
    ]


def test_check_takes_options(run):
    Path("good.yaml").write_text(SMALL)
    result = run("check", "good.yaml", "--set", "train.epoch=3")
    assert result.exit_code == 2
    assert result.stderr.startswith("--set train.epoch=3: unknown key. Did you mean 'epochs'?")


def test_schema_is_json(run):
    assert json.loads(run("schema").stdout)["title"] == "vlkd recipe"


def test_reference_writes_the_page(run):
    assert run("reference", "--output", "page.md").exit_code == 0
    assert Path("page.md").read_text().startswith("# Recipe reference")
