"""`vlkd data check RECIPE`: read every sample of the training data and list the broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(no_args_is_help=True, help="Check the data of a recipe.")


@data.command("check")
def check_data(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the list.")
    ] = Path("broken.csv"),
) -> None:
    """List the samples that cannot be read; `data.exclude: FILE` leaves them out."""
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.check_data import check_data as check

    check(recipe, set_ or [], output)
