"""Finding recipes in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlkd_cli
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.shipped import (
    find_recipe,
    recipes_folder,
    shipped_recipe,
    shipped_recipes,
    summary_of,
)


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A package as a wheel installs it, with one recipe at the top and one in a folder, next to
    somebody else's `recipes`."""
    package = tmp_path / "site-packages" / "vlkd_cli"
    (package / "shipped_recipes" / "papers").mkdir(parents=True)
    (package.parent / "recipes").mkdir()
    (package / "shipped_recipes" / "quickstart.yaml").write_text(
        "\n#\n# The first line.\n# The second.\ntowers: {}\n"
    )
    (package / "shipped_recipes" / "papers" / "clip.yaml").write_text("towers: {}\n")
    monkeypatch.setattr(vlkd_cli, "__file__", str(package / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    return package


def test_a_checkout_has_its_recipes_next_to_the_package():
    assert recipes_folder() == Path(__file__).resolve().parents[3] / "recipes"
    assert "quickstart" in shipped_recipes()


def test_an_installed_package_has_them_inside(installed):
    assert recipes_folder() == installed / "shipped_recipes"
    assert list(shipped_recipes()) == ["papers/clip", "quickstart"]


@pytest.mark.parametrize("spelling", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_a_shipped_recipe_is_found_by_its_name_and_by_its_path_in_the_checkout(installed, spelling):
    assert find_recipe(spelling) == installed / "shipped_recipes" / "quickstart.yaml"


def test_a_file_goes_before_a_shipped_name(installed):
    Path("quickstart").write_text("towers: {}")
    assert find_recipe("quickstart") == Path("quickstart")


def test_a_misspelled_name_names_the_closest(installed):
    with pytest.raises(
        RecipeError,
        match=(
            "no shipped recipe 'quikstart'. Did you mean 'quickstart'. Shipped: papers/clip,"
            " quickstart."
        ),
    ):
        shipped_recipe("quikstart")


def test_the_summary_is_the_header_s_first_line(installed):
    assert summary_of(shipped_recipe("quickstart")) == "The first line."
    assert summary_of(shipped_recipe("papers/clip")) == ""
