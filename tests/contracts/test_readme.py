"""Every command of the README is tested in exactly one way, and its recipe passes the checks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page_commands import (
    WAYS,
    check_yaml,
    is_slow,
    try_command,
    way_of,
    write_recipes,
)
from tests.support.pages import ROOT, blocks_of, commands_of, inside

README = ROOT / "README.md"
COMMANDS = commands_of(README)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's commands run one after another; it holds the README's recipes."""
    place = tmp_path_factory.mktemp("readme")
    write_recipes(blocks_of(README), place)
    return place


def test_the_readme_has_commands_of_every_kind():
    assert len(COMMANDS) >= 25
    assert {way_of(command) for command in COMMANDS} == set(WAYS) - {"another program"}
    assert {"make quickstart", "make test"} <= {" ".join(command.words) for command in COMMANDS}


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] * is_slow(c)) for c in COMMANDS], ids=str
)
def test_a_command_works(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VLKD_CACHE", str(folder / "cache"))
    for name, value in command.variables.items():
        monkeypatch.setenv(name, value)
    try_command(command, folder)


@pytest.mark.parametrize(
    "block", [block for block in blocks_of(README) if block.language != "bash"], ids=str
)
def test_a_recipe_passes_the_check(block):
    assert block.language == "yaml"
    check_yaml(block)


def test_the_links_lead_somewhere():
    targets = list(inside(README))
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).is_file(), target
