"""`vlkd runs [FOLDER]`: the runs of a folder with their state and best values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List runs: recipe, seed, state, step, best and last value of the watched metric."""
    import json

    from vlkd_cli import console
    from vlkd_cli.engine.launching.run_folder import runs_under
    from vlkd_cli.errors import UserError
    from vlkd_cli.reports.listing import describe
    from vlkd_cli.reports.records import read_run

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. `vlkd train` makes runs/.")
    rows = [describe(read_run(path)) for path in runs_under(folder)]
    if not rows:
        raise UserError(f"{folder}: no runs in it. Start one with `vlkd train RECIPE`.")
    if json_:
        console.say(json.dumps(rows, indent=2))
        return
    columns = list(rows[0])
    console.print_table("", columns, [list(row.values()) for row in rows])
