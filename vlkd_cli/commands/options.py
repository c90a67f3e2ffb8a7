"""Options that several commands have, so that they mean the same in each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe. Repeatable."),
]
Gpus = Annotated[
    int | None, typer.Option(min=1, help="Worker processes on this machine, one per GPU.")
]
CpuWorkers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes on this machine, on the CPU.")
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Allow the run's recipe to run code from outside vlkd."),
]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]
