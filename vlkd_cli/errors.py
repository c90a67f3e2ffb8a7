"""Errors that a user can fix, reported in one line. Anything else that is raised is a bug of ours
and shows its traceback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """A mistake or circumstance that the user can fix. The app prints its text, without a
    traceback, and exits with code 2."""


class RecipeError(UserError):
    """A recipe that cannot run. The text holds one line per problem, each with file:line where it
    is known."""


class DataError(UserError):
    """Data that is missing, empty, unreadable or of another shape than its reader expects. Names
    out of the data may hold line breaks; the text is one line still."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split("\n")))


class SubmissionError(DataError):
    """Predictions that cannot be handed in. The text holds a summary and one line per problem."""

    def __init__(self, lines: Sequence[str]) -> None:
        UserError.__init__(self, "\n".join(" ".join(line.split("\n")) for line in lines))


class WeightsError(UserError):
    """Weights that are neither on disk nor fetchable, or that do not fit the architecture they are
    loaded into."""


class CheckpointError(UserError):
    """A checkpoint or run folder that cannot be written, read or continued."""


class MissingPackageError(UserError):
    """An optional package that is needed here and not installed.

    Args:
        what: the component that needs it, in the user's words, e.g. "builder 'timm'".
        extra: the extra of vlkd that installs it.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional package: {install_command(extra)}.")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or torch means that there is not enough memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def install_command(extra: str) -> str:
    """How to install an extra of vlkd: from the checkout that is running, or from the index."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return f"pip install 'vlkd[{extra}]'"
    folder = "." if checkout == Path.cwd() else str(checkout)
    return f"pip install -e '{folder}[{extra}]'"
