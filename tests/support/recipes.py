"""Recipes for tests: a small valid one, changed by each test, and the problems that loading
it gives."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.schema import Recipe

SMALL = """\
towers:
  image: {builder: torchvision, model: resnet18}
  text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}
distillers:
  - {name: infonce}
data: {reader: shapes}
"""


def skip_without_its_library(path: Path) -> None:
    """Skip the test where a recipe needs the builder `adapters` and this environment cannot have it
    (see `make test-latest`)."""
    if "builder: adapters" in path.read_text(encoding="utf-8") and not adapter_rules.is_installed():
        pytest.skip("needs the extra 'adapters'")


def recipe(text: str = SMALL, *overrides: str) -> Recipe:
    """The recipe of a YAML text called r.yaml."""
    return parse_recipe(textwrap.dedent(text), "r.yaml", overrides)


def problems(text: str = SMALL, overrides: Sequence[str] = ()) -> list[str]:
    """The lines that loading the text ends in; none where the recipe is right."""
    try:
        parse_recipe(textwrap.dedent(text), "r.yaml", overrides)
    except RecipeError as error:
        return str(error).splitlines()
    return []


def problems_with(*overrides: str) -> list[str]:
    """The lines that the small recipe with `--set` options ends in, without the options' own
    text."""
    lines = problems(SMALL, overrides)
    return [
        next(
            (
                line.removeprefix(f"--set {override}: ")
                for override in overrides
                if line.startswith(f"--set {override}: ")
            ),
            line,
        )
        for line in lines
    ]
