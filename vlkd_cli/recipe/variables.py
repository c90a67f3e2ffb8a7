"""Environment variables in recipes, `${NAME}` and `${NAME:-default}`: texts that were resolved
remember how they were written, so that no file and no message repeats what may be a secret."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vlkd_cli import console
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.messages import Path, Resolved

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")

_SECRET = re.compile("SECRET|TOKEN|KEY|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
"""Names of variables whose values are not printed either."""


def value_of(name: str, default: str | None) -> str | None:
    """The value of `${NAME:-default}`; the default also if the variable is empty, None if it has
    neither."""
    value = os.environ.get(name, "")
    if _SECRET.search(name):
        console.hide(value, f"${{{name}}}")
    return value if value or (name in os.environ and default is None) else default


def as_written(values: object, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Path and written form of every text that variables were resolved in."""
    if isinstance(values, Resolved):
        yield path, values.written
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from as_written(value, (*path, key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from as_written(value, (*path, number))


def without_marks(values: Any) -> Any:
    """The same values with plain texts."""
    if isinstance(values, Mapping):
        return {key: without_marks(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_marks(value) for value in values]
    return str(values) if isinstance(values, Resolved) else values


def resolved(values: object) -> object:
    """Plain values with the variables in their texts resolved.

    Raises:
        RecipeError: a variable is not set and has no default.
    """
    if isinstance(values, Mapping):
        return {key: resolved(value) for key, value in values.items()}
    if isinstance(values, list):
        return [resolved(value) for value in values]
    if not isinstance(values, str) or not VARIABLE.search(values):
        return values

    def value(match: re.Match[str]) -> str:
        found = value_of(match[1], match[2])
        if found is None:
            raise RecipeError(f"the environment variable {match[1]} is not set. Set it again.")
        return found

    return Resolved(VARIABLE.sub(value, values), values)
