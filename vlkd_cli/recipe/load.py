"""From a recipe file (or a shipped recipe's name) and `--set` options to a checked Recipe, or to
all of its problems at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from vlkd_cli import console
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.checks import check_recipe
from vlkd_cli.recipe.former_names import replace_former_names
from vlkd_cli.recipe.messages import Path, Problem, report
from vlkd_cli.recipe.overrides import apply_overrides
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.shape import check_shape
from vlkd_cli.recipe.shipped import find_recipe
from vlkd_cli.recipe.yaml_file import Document, read_document

_NAMES = ("name", "builder", "reader", "suite")


def load_recipe(source: FilePath | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or shipped under a name, with `--set` options applied and everything
    checked.

    Args:
        source: path of a YAML file, or a name that `vlkd recipes list` shows.
        overrides: `key=value` texts.

    Raises:
        RecipeError: its text has every problem, one line each.
    """
    path = find_recipe(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error
    return parse_recipe(text, str(path), overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML text.

    Args:
        name: what messages call the text.

    Raises:
        RecipeError: its text has every problem, one line each.
    """
    document = read_document(text, name)
    if document.problems and document.value is None:
        raise RecipeError(report(document.origins, document.problems, name))
    early = [*document.problems, *apply_overrides(document, overrides)]
    for notice in replace_former_names(document.value):
        console.warn(notice)
    taken = [problem.path for problem in early]
    shape = [problem for problem in check_shape(document.value) if problem.path not in taken]
    problems = early + shape
    recipe = _build(document, problems)
    if recipe is not None:
        problems += [
            problem for problem in check_recipe(recipe) if not _follows_from(problem, problems)
        ]
    if problems or recipe is None:
        raise RecipeError(report(document.origins, problems, name))
    return recipe


def _build(document: Document, problems: list[Problem]) -> Recipe | None:
    """The recipe without the places that have problems, so that what the rest means together can be
    checked too."""
    values = copy.deepcopy(document.value)
    for problem in problems:
        if problem.about_value:
            _remove(values, problem.path)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        if not problems:
            problems += [
                Problem(tuple(detail["loc"]), f"{detail['msg']}.") for detail in error.errors()
            ]
        return None


def _remove(values: Any, path: Path) -> None:
    for part in path[:-1]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return
    # Entries of lists stay: removing one would move the others. Misspelt names stay too, or nothing
    # around them could be checked.
    if (
        path
        and isinstance(values, dict)
        and not (path[-1] in _NAMES and isinstance(values.get(path[-1]), str))
    ):
        values.pop(path[-1], None)


def _follows_from(problem: Problem, known: Sequence[Problem]) -> bool:
    """Whether a known problem at the same place, inside it or around it may be the cause."""
    return any(
        other.path[: len(problem.path)] == problem.path
        or problem.path[: len(other.path)] == other.path
        for other in known
        if other.path
    )
