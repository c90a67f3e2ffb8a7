from __future__ import annotations

import typer

from vlkd_cli.app import build_app

SHARED = ("--gpus", "--cpu-workers", "--runs")


def test_shared_options_read_alike_in_every_command() -> None:
    commands = typer.main.get_command(build_app()).commands.items()
    for option in SHARED:
        found = {
            name: (parameter.help, parameter.default)
            for name, command in commands
            for parameter in command.params
            if option in parameter.opts
        }
        assert len(found) >= 5, f"{option}: {sorted(found)}"
        assert len(set(found.values())) == 1, f"{option}: {found}"
