"""`vlkd list-distillers`: the training objectives side by side."""

from __future__ import annotations

from typing import Annotated

import typer


def list_distillers(
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Every training objective: its paper, its direction, what else of a batch it needs, its
    state, and what it communicates between ranks."""
    import json

    from vlkd_cli import console
    from vlkd_cli.recipe.reference import distiller_rows

    columns = ["name", "paper", "direction", "wants", "state", "crosses ranks"]
    rows = distiller_rows()
    if json_:
        console.say(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    else:
        console.print_table("", columns, rows)
