"""The command line: what it answers, how mistakes end."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
from enum import Enum
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

import vlkd_cli
from vlkd_cli.app import COMMANDS, build_app, guarded, main, with_bare_resume
from vlkd_cli.errors import RecipeError

RUN = CliRunner()


def ran(function) -> tuple[int, str]:
    """Exit code and standard error of a command that runs the function."""
    app = typer.Typer()
    app.command()(guarded(function))
    result = RUN.invoke(app, [])
    return result.exit_code, result.stderr


def test_help_lists_every_command():
    result = RUN.invoke(build_app(), ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f" {name} " in result.stdout
    assert set(COMMANDS) == {
        "train",
        "eval",
        "export",
        "encode",
        "search",
        "synthesize",
        "data",
        "mine",
        "sweep",
        "runs",
        "compare",
        "report",
        "recipes",
        "show",
        "cache",
        "list-models",
        "list-distillers",
        "list-datasets",
        "list-adapters",
        "submit-elevater",
    }


def test_every_command_and_each_option_has_help():
    app = typer.main.get_command(build_app())
    for name, command in app.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                assert parameter.help, f"{name} --{parameter.name}"


def test_version():
    assert RUN.invoke(build_app([]), ["--version"]).stdout == f"vlkd {vlkd_cli.__version__}\n"


def test_a_misspelled_command_names_the_closest():
    result = RUN.invoke(build_app(), ["trian"])
    assert result.exit_code == 2
    assert "Did you mean 'train'?" in result.stderr


def error_of(capsys, *words: str) -> str:
    """Standard error of `vlkd WORDS`, which must end with exit code 2."""
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare a --at bset", "vlkd compare: --at bset: is not one of best, last. Did you mean"),
        (
            "compare a --metrc x",
            "vlkd compare: there is no option --metrc. Did you mean '--metric'",
        ),
        ("encode a b --raww", "vlkd encode: there is no option --raww. Did you mean '--raw'?"),
        ("compare", "vlkd compare: missing argument 'RUN...|FOLDER'. See `vlkd compare -h`."),
        ("eval --digits x", "vlkd eval: --digits x: must be a valid integer. See `vlkd eval -h`."),
        ("eval --jobs 0", "vlkd eval: --jobs 0: must be greater than or equal to 1. See"),
        ("mine x out.csv --max-score nan", "--max-score nan: must be a finite number.\n"),
        ("cache prune --unused-for inf", "--unused-for inf: must be a finite number.\n"),
        ("eval --table", "vlkd eval: option '--table' requires an argument. See `vlkd eval -h`."),
        ("recipes lst", "vlkd recipes: no such command 'lst'. Did you mean 'list'?\n"),
        ("trian", "vlkd: no such command 'trian'. Did you mean 'train'?\n"),
    ],
)
def test_a_mistake_in_the_words_of_a_command_is_one_line(capsys, words, message):
    error = error_of(capsys, *words.split())
    assert error.startswith(message) and error.count("\n") == 1


def choices_of_commands() -> list[tuple[str, str, str]]:
    """Command, option and value of everything that takes one of several words."""
    found = []
    for name, command in COMMANDS.items():
        function = getattr(
            importlib.import_module(f"vlkd_cli.commands.{command.module}"), command.attribute
        )
        if isinstance(function, typer.Typer):
            continue
        for key, annotation in get_type_hints(function).items():
            for kind in (annotation, *get_args(annotation)):
                words = get_args(kind) if get_origin(kind) is Literal else []
                words = list(kind) if isinstance(kind, type) and issubclass(kind, Enum) else words
                found += [(name, f"--{key.strip('_').replace('_', '-')}", word) for word in words]
    return found


def test_every_choice_of_every_command_suggests_the_right_word(capsys):
    choices = choices_of_commands()
    assert len(choices) >= 20
    for name, option, word in choices:
        error = error_of(capsys, name, option, f"{word}x")
        assert f"Did you mean '{word}'?" in error and error.count("\n") == 1, (name, option)


def test_a_user_s_mistake_is_its_text_alone_and_exit_code_2():
    def command() -> None:
        raise RecipeError("r.yaml:1: a: wrong.\nr.yaml:2: [b]: wrong too.")

    assert ran(command) == (2, "r.yaml:1: a: wrong.\nr.yaml:2: [b]: wrong too.\n")


def test_ctrl_c_ends_with_130():
    def command() -> None:
        raise KeyboardInterrupt

    assert ran(command) == (130, "Interrupted.\n")


def test_our_own_mistakes_keep_their_traceback():
    def command() -> None:
        raise ZeroDivisionError

    app = typer.Typer()
    app.command()(guarded(command))
    assert isinstance(RUN.invoke(app, []).exception, ZeroDivisionError)


def test_what_paths_and_disks_do_is_one_line_and_other_errors_of_the_system_are_not(capsys):
    error = error_of(capsys, "recipes", "check", "x" * 5_000)
    assert "File name too long. Choose another path" in error and error.count("\n") == 1

    def read_only() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/data/out.html")

    line = "/data/out.html: Read-only file system. Choose another path, or make it accessible.\n"
    assert ran(read_only) == (2, line)

    def gone() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "ours.json")

    app = typer.Typer()
    app.command()(guarded(gone))
    assert isinstance(RUN.invoke(app, []).exception, FileNotFoundError)


def test_resume_without_a_run_means_the_latest():
    assert with_bare_resume(["train", "r", "--resume"]) == ["train", "r", "--resume", "latest"]
    assert with_bare_resume(["train", "--resume", "--quiet"]) == [
        "train",
        "--resume",
        "latest",
        "--quiet",
    ]
    assert with_bare_resume(["train", "--resume", "runs/a"]) == ["train", "--resume", "runs/a"]


def test_main_leaves_with_the_command_s_exit_code(capsys):
    try:
        main(["show", "distiller", "nothing"])
    except SystemExit as leaving:
        assert leaving.code == 2
    assert capsys.readouterr().err.startswith("unknown distiller 'nothing'.")


def test_a_file_that_ends_too_early_is_one_line_and_not_aborted():
    def read(path: str) -> None:
        raise EOFError("No data left in file")

    assert ran(lambda: read("a/b.npy")) == (
        2,
        "a/b.npy ends too early. Fetch or write it again.\n",
    )
    assert ran(lambda: exec("raise EOFError"))[1].startswith("a file ends too early.")


# typer turns Ctrl-C into Abort while it reads the words of a command.
@pytest.mark.parametrize("reason", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_before_a_command_begins_is_one_line(reason, monkeypatch, capsys):
    def interrupted(_: object) -> None:
        raise reason

    monkeypatch.setattr("vlkd_cli.app.build_app", interrupted)
    with pytest.raises(SystemExit) as leaving:
        main(["show"])
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_shells_complete_commands(monkeypatch):
    environment = {
        "_VLKD_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "vlkd sub",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", "from vlkd_cli.app import main; main()"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "submit-elevater" in done.stdout
