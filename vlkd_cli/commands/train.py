"""`vlkd train RECIPE`: compose the towers, align them, evaluate, save."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import CpuWorkers, Gpus, RunsFolder


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe file, or the name of a shipped recipe.", show_default=False),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the recipe, e.g. optimizer.lr=1e-4. Repeatable.",
        ),
    ] = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[RUN]",
            help="Continue a run; without RUN the newest of this recipe.",
            show_default=False,
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|URL", help="Folder of this run. By default runs/RECIPE-TIME."),
    ] = None,
    runs: RunsFolder = Path("runs"),
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Build everything, take one step, print sizes, and stop."),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --dry-run: print the largest batch and chunk that fit a GPU of this memory,"
            " e.g. 24GiB.",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes (machines).")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Rank of this node, from 0.")] = 0,
    rendezvous: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Rendezvous endpoint HOST:PORT of node 0."),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="How often a failed group starts again from its last checkpoint."),
    ] = 0,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="With --resume RUN: allow its recipe to run code from outside vlkd.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print messages of the libraries.")
    ] = False,
) -> None:
    """Train a recipe. Ctrl-C saves and stops; --resume continues with the same numbers."""
    from vlkd_cli import console

    if not quiet:
        console.announce("Loading torch ...")
    from vlkd_cli.engine.launching.start import TrainRequest, start_training

    request = TrainRequest(
        recipe=recipe,
        overrides=set_ or [],
        gpus=gpus,
        cpu_workers=cpu_workers,
        resume=resume,
        run=run,
        runs=runs,
        dry_run=dry_run,
        memory=memory,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        max_restarts=max_restarts,
        trust=trust,
        quiet=quiet,
        verbose=verbose,
    )
    status = start_training(request)
    if status:
        raise typer.Exit(128 + status)
