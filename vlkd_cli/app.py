"""The command table. Knows where each command lives, and how mistakes end: one line on standard
error and exit code 2.

A command's module imports typer and the standard library only; the real imports happen inside its
function, so `vlkd --help` imports neither torch nor anything else that is slow.
"""

from __future__ import annotations

import errno
import functools
import importlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, cast

import typer

import vlkd_cli
from vlkd_cli import console
from vlkd_cli.errors import UserError


class Command(NamedTuple):
    """A module below vlkd_cli.commands and the name in it: a function, or a typer app with commands
    of its own."""

    module: str
    attribute: str
    panel: str


TRAIN, USE, COMPARE, LOOK, SUBMIT = (
    "Train, evaluate, export",
    "Use what was trained",
    "Runs and reports",
    "Look up",
    "Hand in",
)

COMMANDS: dict[str, Command] = {
    "train": Command("train", "train", TRAIN),
    "sweep": Command("sweep", "sweep", TRAIN),
    "eval": Command("evaluate", "evaluate", TRAIN),
    "export": Command("export", "export", TRAIN),
    "encode": Command("encode", "encode", USE),
    "search": Command("search", "search", USE),
    "synthesize": Command("synthesize", "synthesize", TRAIN),
    "data": Command("data", "data", TRAIN),
    "mine": Command("mine", "mine", USE),
    "runs": Command("runs", "runs", COMPARE),
    "compare": Command("compare", "compare", COMPARE),
    "report": Command("report", "report", COMPARE),
    "recipes": Command("recipes", "recipes", LOOK),
    "show": Command("show", "show", LOOK),
    "cache": Command("cache", "cache", LOOK),
    "list-models": Command("list_models", "list_models", LOOK),
    "list-distillers": Command("list_distillers", "list_distillers", LOOK),
    "list-datasets": Command("list_datasets", "list_datasets", LOOK),
    "list-adapters": Command("list_adapters", "list_adapters", LOOK),
    "submit-elevater": Command("submit_elevater", "submit_elevater", SUBMIT),
}

INTERRUPTED = 130
"""What shells report for a program that Ctrl-C ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `vlkd`; exits with the command's code, and on a mistyped command line with one line."""
    words = with_bare_resume(sys.argv[1:] if arguments is None else arguments)
    # A command that is named needs none of the others.
    asked = [words[0]] if words and words[0] in COMMANDS else list(COMMANDS)
    try:
        # Standalone, typer would show mistakes as a frame of many lines.
        code = build_app(asked)(args=words, prog_name="vlkd", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        # Before the command began, e.g. while its module was imported or its words were read.
        console.error("Interrupted.")
        sys.exit(INTERRUPTED)
    except Exception as error:
        line = mistake_in_words(error, " ".join(["vlkd", *(asked if len(asked) == 1 else [])]))
        if line is None:
            raise
        if line:
            console.error(line)
        sys.exit(2)
    sys.exit(code or 0)


def build_app(commands: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with the given commands."""
    app = typer.Typer(
        name="vlkd",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in commands:
        command = COMMANDS[name]
        target = getattr(
            importlib.import_module(f"vlkd_cli.commands.{command.module}"), command.attribute
        )
        if isinstance(target, typer.Typer):
            for registered in target.registered_commands:
                if registered.callback is not None:
                    registered.callback = guarded(registered.callback)
            app.add_typer(target, name=name, rich_help_panel=command.panel)
        else:
            app.command(name, rich_help_panel=command.panel)(guarded(target))
    return app


def mistake_in_words(error: Exception, command: str = "vlkd") -> str | None:
    """What is wrong with the words of a command, in one line that suggests the right word; None
    where the error is of another kind.

    typer brings its own copy of click or uses click itself, depending on its version, so its
    errors are recognized by what both have.

    Args:
        command: the command, where the error does not name it.
    """
    if not callable(getattr(error, "format_message", None)):
        return None
    kind, found = type(error).__name__, cast(Any, error)
    if kind == "NoArgsIsHelpError":
        return ""  # the help is on the screen already
    from vlkd_cli.catalog import did_you_mean

    context, parameter = getattr(found, "ctx", None), getattr(found, "param", None)
    command = getattr(context, "command_path", command)
    message = " ".join(found.message.removeprefix("Value error, ").split())
    choice = re.fullmatch(r"(['\"])(?P<word>.*)\1 is not one of (?P<known>.*?)\.?", message)
    guess = ""
    if parameter is not None and choice is not None:
        known = [word.strip(" '\"") for word in choice["known"].split(",")]
        guess = did_you_mean(choice["word"], known)
        text = f"{_option(parameter)} {choice['word']}: is not one of {', '.join(known)}."
    elif parameter is not None and message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").partition(", ")[0]
        text = f"{_option(parameter)}{_input_of(error)}: must be {wanted}."
    elif kind == "NoSuchOption":
        own = context.command.params if context else []
        names = [name for each in own for name in (*each.opts, *each.secondary_opts)]
        guess = did_you_mean(found.option_name, [*names, "--help"])
        text = f"there is no option {found.option_name}."
    else:
        text = " ".join(found.format_message().split())
        text = text[:1].lower() + text[1:] + ("" if text.endswith((".", "?")) else ".")
    hint = "" if "Did you mean" in text + guess else f" See `{command} -h`."
    return f"{command}: {text}{guess}{hint}"


def _option(parameter: Any) -> str:
    """An option by its longest name, an argument by its own."""
    names = [name for name in parameter.opts if name.startswith("-")]
    return max(names, key=len) if names else str(parameter.human_readable_name)


def _input_of(error: Exception) -> str:
    """The value that could not be converted, where pydantic names it."""
    cause: Any = error.__cause__
    if not hasattr(cause, "errors"):
        return ""
    value = cause.errors()[0].get("input")
    return f" {value}" if isinstance(value, str | int | float) else ""


_OF_THE_SYSTEM = frozenset(
    {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
    | {errno.ELOOP, errno.EIO, errno.ESTALE, errno.ENOTDIR}
)
"""What paths, permissions and disks do to a program, and never a bug of ours."""


def guarded(function: Callable[..., object]) -> Callable[..., object]:
    """The function, with a UserError shown as its text and exit code 2, Ctrl-C as 130, and a closed
    pipe as the end of the output.

    An EOFError is shown as one line too: click would end the command with "Aborted." alone. So is
    an OSError that no program can prevent, such as a disk that is full or read-only.
    """

    @functools.wraps(function)
    def run(*positional: Any, **named: Any) -> Any:
        try:
            _refuse_infinite(named)
            return function(*positional, **named)
        except UserError as error:
            console.error(str(error))
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            console.error("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except EOFError as error:
            console.error(f"{_file_read_by(error)} ends too early. Fetch or write it again.")
            raise typer.Exit(2) from error
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. What Python still holds back must not raise
            # again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            if error.errno not in _OF_THE_SYSTEM:
                raise
            place = f"{str(error.filename)[:200]}: " if error.filename else ""
            console.error(f"{place}{error.strerror}. Choose another path, or make it accessible.")
            raise typer.Exit(2) from error

    return run


def _refuse_infinite(options: Mapping[str, object]) -> None:
    """Refuse nan, which no bound of an option refuses, and infinity."""
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            option = name.strip("_").replace("_", "-")
            raise UserError(f"--{option} {value}: must be a finite number.")


def _file_read_by(error: EOFError) -> str:
    """The file that ended too early if a function on the stack has it, else what was being
    done."""
    trace = error.__traceback__
    name = "a file"
    while trace is not None:
        variables = trace.tb_frame.f_locals
        for word in ("path", "place", "file", "folder"):
            value = variables.get(word)
            if isinstance(value, str | os.PathLike):
                name = os.fspath(value)
        trace = trace.tb_next
    return str(name)


def with_bare_resume(words: Sequence[str]) -> list[str]:
    """`--resume` without a run means the latest one; option parsers know no option with an optional
    value."""
    out: list[str] = []
    for number, word in enumerate(words):
        out.append(word)
        if word == "--resume" and (number + 1 == len(words) or words[number + 1].startswith("-")):
            out.append("latest")
    return out


def _version(asked: bool) -> None:
    if asked:
        console.say(f"vlkd {vlkd_cli.__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Align and distil image towers with text towers, from one YAML recipe."""
