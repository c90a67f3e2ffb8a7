"""The recipes that come with vlkd, in a checkout and in an installed wheel, and finding a recipe by
path or name."""

from __future__ import annotations

from pathlib import Path

import vlkd_cli
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import RecipeError


def recipes_folder() -> Path:
    """Where the shipped recipes lie: `recipes/` of a checkout, or inside the installed package."""
    package = Path(vlkd_cli.__file__).resolve().parent
    checkout = package.parent / "recipes"
    # A folder called recipes next to an installed package belongs to somebody else.
    return (
        checkout
        if (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
        else package / "shipped_recipes"
    )


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of every shipped recipe; those in folders are named with theirs:
    `folder/name`."""
    folder = recipes_folder()
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.yaml"))
    }


def shipped_recipe(name: str) -> Path:
    """The file of a shipped recipe.

    Raises:
        RecipeError: no recipe of that name.
    """
    recipes = shipped_recipes()
    name = name.removesuffix(".yaml")
    if name not in recipes:
        raise RecipeError(
            f"no shipped recipe '{name}'.{did_you_mean(name, recipes)} Shipped:"
            f" {', '.join(recipes)}."
        )
    return recipes[name]


def find_recipe(source: Path | str) -> Path:
    """A recipe's file, from its path or a shipped name.

    Raises:
        RecipeError: neither a file nor a shipped recipe.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        raise RecipeError(f"{path} is a folder. Name the recipe's file in it.")
    recipes = shipped_recipes()
    name = path.with_suffix("").as_posix() if path.suffix in (".yaml", ".yml") else str(source)
    # `vlkd train recipes/quickstart.yaml` also works where vlkd is installed and there is no
    # recipes/ folder.
    for candidate in (name, name.removeprefix("recipes/")):
        if candidate in recipes:
            return recipes[candidate]
    neighbors = (
        {str(other): other for other in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    )
    guess = did_you_mean(str(path), [*neighbors, *recipes]) or did_you_mean(path.stem, recipes)
    raise RecipeError(
        f"{source}: no such recipe, neither a file nor a shipped one.{guess} `vlkd recipes list`"
        " shows the shipped ones."
    )


def summary_of(path: Path) -> str:
    """The first line of a recipe's header comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ").strip()
    return ""
