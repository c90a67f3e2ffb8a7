"""`vlkd synthesize RECIPE OUT`: training data out of queries and passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import CpuWorkers, Gpus, Overrides, RunsFolder, Trust


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
    set_: Overrides = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
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
