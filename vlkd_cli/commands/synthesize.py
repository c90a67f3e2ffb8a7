"""`vlkd synthesize RECIPE OUT`: training data out of queries and passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def synthesize(
    *,
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE | RUN",
            help="A recipe with a section `synthesis`, or a run of one, whose weights then mine.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder that is written.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe. Repeatable."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine, one per GPU.")
    ] = None,
    cpu_workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine, on the CPU.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Allow a run's recipe to run code from outside vlkd.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
) -> None:
    """Make triplets to train on: passages are mined for each query, and the margin between a
    positive and a negative passage is scored. The same command resumes what was interrupted."""
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.synthesize import prepared, start_synthesis

    job = prepared(target, output, set_ or [], runs, trust)
    status = start_synthesis(job, gpus=gpus, cpu_workers=cpu_workers)
    if status:
        raise typer.Exit(128 + status)
