"""Every command of the README is tested in exactly one way, its recipe passes the checks, and its
table is the catalogue."""

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
from tests.support.pages import ROOT, blocks_of, commands_of, inside, table_after
from vlkd_cli import catalog
from vlkd_cli.recipe.params import signature_of

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


def _names(kind: str, wanted: object = True, asked: str = "") -> list[str]:
    return [
        name
        for name in catalog.names(kind)
        if not asked or signature_of(kind, name).attributes.get(asked, "one") == wanted
    ]


def test_the_table_of_what_goes_with_what_is_the_catalogue():
    modalities = {
        name: signature_of("builder", name).attributes["modalities"]
        for name in catalog.names("builder")
    }
    towers = {
        name: signature_of("suite", name).attributes["modalities"]
        for name in catalog.names("suite")
    }
    expected = {
        "image builders": [name for name, offered in modalities.items() if "image" in offered],
        "text builders": [name for name, offered in modalities.items() if "text" in offered],
        "poolers": _names("pooler"),
        "heads": _names("head"),
        "adapters": _names("adapter"),
        "prompts": _names("prompt"),
        "objectives between two outputs": _names("distiller", "one", "takes"),
        "objectives between two pairs": _names("distiller", "pair", "takes"),
        "readers": _names("reader"),
        "augmentations": _names("augment"),
        "suites for both towers": [
            name for name, needed in towers.items() if needed == {"image", "text"}
        ],
        "suites for image towers": [name for name, needed in towers.items() if needed == {"image"}],
        "suites for text towers": [name for name, needed in towers.items() if needed == {"text"}],
        "reports": _names("sink"),
    }
    assert {
        part: names.split(", ") for part, names, _ in table_after(README, "## What goes with what")
    } == expected
