"""Every shipped recipe is right and describes itself."""

from __future__ import annotations

import re

import pytest

from tests.support.recipes import skip_without_its_library
from vlkd_cli.recipe.load import load_recipe
from vlkd_cli.recipe.shipped import shipped_recipes, summary_of
from vlkd_cli.recipe.snapshot import recipe_to_yaml

RECIPES = shipped_recipes()


def test_there_are_recipes():
    assert "quickstart" in RECIPES
    assert len(RECIPES) >= 7


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_passes_its_check(name, tmp_path):
    skip_without_its_library(RECIPES[name])
    read = load_recipe(name)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe_to_yaml(read), encoding="utf-8")
    assert load_recipe(resolved) == read


def test_recipes_with_sgd_and_lars_have_the_momentum_of_their_papers():
    # Neither torch's SGD nor timm's LARS has any by default.
    optimizers = {name: load_recipe(name).optimizer for name in RECIPES}
    found = {
        name: each.keys.get("momentum")
        for name, each in optimizers.items()
        if each.name in ("sgd", "lars")
    }
    assert len(found) >= 14 and set(found.values()) == {0.9}, found


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_opens_with_what_it_shows_and_its_command(name):
    header = []
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line)
    assert len(summary_of(RECIPES[name])) > 20
    assert re.search(rf"vlkd train (recipes/)?{name}(\.yaml)?\b", "\n".join(header)), (
        "the header names no command"
    )
