"""`vlkd show` and `vlkd list-distillers`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from vlkd_cli import catalog
from vlkd_cli.app import build_app


def run(*words: str):
    return CliRunner().invoke(build_app([words[0]]), list(words))


def test_show_prints_words_facts_and_a_table_of_keys():
    out = run("show", "distiller", "infonce").stdout
    assert out.startswith("distiller infonce\n\nSoftmax contrast")
    assert "\ndirection: symmetric\n" in out
    assert "logit_scale" in out
    assert "14.2857" in out


def test_show_without_a_name_lists_the_names():
    assert run("show", "sink").stdout.split() == catalog.names("sink")
    assert "distiller" in run("show").stdout


def test_show_of_a_misspelled_name_is_one_line():
    result = run("show", "suite", "zeroshot")
    assert result.exit_code == 2
    assert result.stderr.startswith("unknown suite 'zeroshot'. Did you mean 'zero_shot'?")


def test_list_distillers_has_a_row_for_each():
    rows = json.loads(run("list-distillers", "--json").stdout)
    assert [row["name"] for row in rows] == catalog.names("distiller")
    assert rows[0]["direction"] == "symmetric"
    table = run("list-distillers").stdout
    for name in catalog.names("distiller"):
        assert f"\n{name} " in table


def test_show_finds_the_kind_of_a_name():
    assert run("show", "infonce").stdout == run("show", "distiller", "infonce").stdout
    assert run("show", "adamw").stdout.startswith("optimizer adamw\n")
    assert run("show", "evals").stdout.startswith("section evals\n")


def test_show_of_a_name_of_several_kinds_lists_how_to_choose():
    assert run("show", "csv").stderr == (
        "'csv' is the name of several components. Use `vlkd show reader csv` or"
        " `vlkd show sink csv`.\n"
    )
    assert run("show", "infonc").stderr.startswith(
        "'infonc' is neither a kind nor a name. Did you mean 'infonce'?"
    )
