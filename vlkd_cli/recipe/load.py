"""From a recipe file (or a shipped recipe's name) and `--set` options to a checked Recipe, or to
all of its problems at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from vlkd_cli import catalog, console
from vlkd_cli.errors import CheckpointError, RecipeError
from vlkd_cli.recipe.checks import check_batch, check_recipe, check_sinks
from vlkd_cli.recipe.former_names import replace_former_names
from vlkd_cli.recipe.messages import Path, Problem, report
from vlkd_cli.recipe.named_models import expand_likes, write_out_likes
from vlkd_cli.recipe.overrides import apply_overrides
from vlkd_cli.recipe.params import third_parties_unread
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.shape import check_shape
from vlkd_cli.recipe.shipped import find_recipe
from vlkd_cli.recipe.trust import check_foreign
from vlkd_cli.recipe.variables import as_written, resolved, without_marks
from vlkd_cli.recipe.yaml_file import Document, read_document

Check = Callable[[Recipe], Iterable[Problem]]

TRUST_OPTION = "Add --trust if you trust who made it."

_NAMES = ("name", "builder", "reader", "suite")


def load_recipe(
    source: FilePath | str,
    overrides: Sequence[str] = (),
    *,
    foreign: bool = False,
    remedy: str = TRUST_OPTION,
    to_train: int = 0,
) -> Recipe:
    """The recipe in a file, or shipped under a name, with `--set` options applied and everything
    checked.

    Args:
        source: path of a YAML file, or a name that `vlkd recipes list` shows.
        overrides: `key=value` texts.
        foreign, remedy, to_train: see `parse_recipe`.

    Raises:
        RecipeError: its text has every problem, one line each.
    """
    path = find_recipe(source)
    return parse_recipe(
        _read(path), str(path), overrides, foreign=foreign, remedy=remedy, to_train=to_train
    )


def parse_recipe(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    *,
    foreign: bool = False,
    remedy: str = TRUST_OPTION,
    to_train: int = 0,
) -> Recipe:
    """The recipe in a YAML text.

    Args:
        name: what messages call the text.
        foreign: whether it comes with a run, a checkpoint or an exported folder and so may name
            components of the catalogue only, see `recipe.trust`. The overrides are the user's own.
        remedy: what to do for someone who trusts it.
        to_train: number of processes that are to train it, for checks that only training needs:
            the packages of its sinks, and the size of a step. 0: it is not to be trained.

    Raises:
        RecipeError: its text has every problem, one line each.
    """
    document = read_document(text, name)
    if foreign and (problems := check_foreign(document.value, remedy)):
        raise RecipeError(report(document.origins, problems, name))
    checks: list[Check] = [check_recipe]
    if to_train:
        checks += [check_sinks, partial(check_batch, processes=to_train)]
    return _checked(document, name, overrides, checks)


def origins_of(source: FilePath | str, overrides: Sequence[str] = ()) -> dict[Path, str]:
    """`file:line` (or `--set key=value`) of every key of a recipe, for problems that only building
    finds.

    Args:
        source, overrides: of `load_recipe`, which has read them without an error.
    """
    path = find_recipe(source)
    document = read_document(_read(path), str(path))
    _overridden(document, overrides)
    return document.origins


def recipe_of_checkpoint(
    text: str,
    name: str,
    overrides: Sequence[str] = (),
    *,
    foreign: bool = True,
    remedy: str = TRUST_OPTION,
) -> Recipe:
    """The recipe that a checkpoint holds as JSON.

    Its sections, keys and types are checked. What they mean together was checked when it was
    trained, and is checked again only where overrides change it, so that later and stricter checks
    do not close old checkpoints.

    Args:
        name, foreign, remedy: see `parse_recipe`.

    Raises:
        CheckpointError: it is not JSON.
        RecipeError: its text has every problem, one line each.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise CheckpointError(f"{name}: its recipe is damaged. Use another checkpoint.") from error
    values = resolved(values)
    if foreign and (problems := check_foreign(values, remedy)):
        raise RecipeError(report({}, problems, name))
    document = Document(values, {(): name}, [])
    return _checked(document, name, overrides, (check_recipe,) if overrides else ())


def recipe_from_json(text: str) -> Recipe:
    """A checked recipe that `snapshot.recipe_to_json` wrote, its variables resolved again.

    Raises:
        RecipeError: a variable is not set.
    """
    return _recipe_of(resolved(json.loads(text)))


def load_unchecked(path: FilePath) -> Recipe:
    """A run's recipe for comparison: nothing that it names is imported.

    Raises:
        RecipeError: it is not a recipe.
    """
    document = read_document(_read(path), str(path))
    replace_former_names(document.value)
    problems = list(document.problems)
    recipe = _build(document, problems)
    if recipe is None or problems:
        raise RecipeError(report(document.origins, problems, str(path)))
    return recipe


def _read(path: FilePath) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a text file in UTF-8 (byte {error.start}).") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}.") from error


def _checked(
    document: Document, name: str, overrides: Sequence[str], checks: Sequence[Check]
) -> Recipe:
    if document.problems and document.value is None:
        raise RecipeError(report(document.origins, document.problems, name))
    early = _overridden(document, overrides) + document.problems
    early += expand_likes(document)
    for notice in replace_former_names(document.value):
        console.warn(notice)
    # Another package's code is imported only once the rest of the recipe is right.
    with third_parties_unread() as unread:
        recipe, problems = _build_and_check(document, early, checks, unread)
    if unread and not problems:
        problems = list(_check_bases(document.value, unread))
        if not problems:
            recipe, problems = _build_and_check(document, early, checks)
    if problems or recipe is None:
        raise RecipeError(report(document.origins, problems, name))
    return recipe


def _overridden(document: Document, overrides: Sequence[str]) -> list[Problem]:
    """Apply `--set`, also to the keys of towers that are only named; what is wrong with it."""
    write_out_likes(document)
    problems = apply_overrides(document, overrides)
    write_out_likes(document)
    return problems


def _build_and_check(
    document: Document,
    early: Sequence[Problem],
    checks: Sequence[Check],
    unread: Sequence[tuple[str, str]] = (),
) -> tuple[Recipe | None, list[Problem]]:
    """The recipe and its problems; with components that were not read, only the problems that do
    not depend on them."""
    taken = [problem.path for problem in early]
    shape = [problem for problem in check_shape(document.value) if problem.path not in taken]
    problems = [*early, *shape]
    recipe = _build(document, problems)
    if recipe is not None:
        found = [problem for check in checks for problem in check(recipe)]
        problems += [
            problem
            for problem in found
            if not _follows_from(problem, problems)
            and not (unread and problem.path[:1] in (("towers",), ("distillers",)))
        ]
    return recipe, problems


def _check_bases(values: object, unread: Sequence[tuple[str, str]]) -> Iterator[Problem]:
    for kind, name in dict.fromkeys(unread):
        try:
            catalog.check_base(kind, name)
        except RecipeError as error:
            yield Problem(next(_paths_with(values, name, ()), ()), str(error))


def _paths_with(values: object, text: str, path: Path) -> Iterator[Path]:
    """The paths at which a text is written."""
    if values == text:
        yield path
    elif isinstance(values, Mapping | list):
        items = values.items() if isinstance(values, Mapping) else enumerate(values)
        for key, value in items:
            yield from _paths_with(value, text, (*path, key))


def _build(document: Document, problems: list[Problem]) -> Recipe | None:
    """The recipe without the values that have problems, so that the rest can be checked as a
    whole, too."""
    values = copy.deepcopy(document.value)
    for problem in problems:
        if problem.about_value:
            _remove(values, problem.path)
    try:
        return _recipe_of(values)
    except ValidationError as error:
        if not problems:
            problems += [
                Problem(tuple(detail["loc"]), f"{detail['msg']}.") for detail in error.errors()
            ]
        return None


def _recipe_of(values: object) -> Recipe:
    recipe = Recipe.model_validate(without_marks(values))
    recipe.remember_written(dict(as_written(values)))
    return recipe


def _remove(values: Any, path: Path) -> None:
    for part in path[:-1]:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return
    # Entries of lists stay: removing one would move the others. Misspelled names stay too, since
    # nothing around them could be checked otherwise.
    if (
        path
        and isinstance(values, dict)
        and not (path[-1] in _NAMES and isinstance(values.get(path[-1]), str))
    ):
        values.pop(path[-1], None)


def _follows_from(problem: Problem, known: Sequence[Problem]) -> bool:
    """Whether a known problem at the same path, below or above it may be the cause."""
    return any(
        other.path[: len(problem.path)] == problem.path
        or problem.path[: len(other.path)] == other.path
        for other in known
        if other.path
    )
