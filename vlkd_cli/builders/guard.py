"""What a library raises, in one line of ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import vlkd_cli
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import RecipeError, UserError, ran_out_of_memory


@contextmanager
def one_line(what: str, remedy: str, kind: type[UserError] = RecipeError) -> Iterator[None]:
    """Turn any exception of a library into `WHAT: its first line. REMEDY`.

    Only calls of libraries belong inside: a bug of ours must show its traceback.

    Args:
        what: the model or key in the user's words.
        remedy: what the user can do, as a sentence.
    """
    try:
        yield
    except UserError:
        raise
    # Libraries raise whatever they like on keys and files that they were not made for.
    except Exception as error:
        raise kind(f"{what}: {_described(error)}. {remedy}") from error


@contextmanager
def of_tower(name: str) -> Iterator[None]:
    """Name the tower in its errors, and turn what a library raises into one line; a bug of ours
    shows its traceback."""
    try:
        yield
    except UserError as error:
        if f"'{name}'" not in str(error):
            error.args = (f"tower '{name}': {error}",)
        raise
    except Exception as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if raised_in.is_relative_to(Path(vlkd_cli.__file__).parent):
            raise
        if ran_out_of_memory(error):
            raise RecipeError(
                f"tower '{name}' needs more memory than is available. Choose smaller sizes."
            ) from error
        raise RecipeError(
            f"tower '{name}': {_described(error)}. Correct its keys, or choose another model."
        ) from error


def _described(error: Exception) -> str:
    """The first line of a library's message, with the exception's name if the line alone is
    unclear."""
    line = first_line(error)
    name = type(error).__name__
    return line if isinstance(error, (OSError, ValueError)) or line == name else f"{name}: {line}"
