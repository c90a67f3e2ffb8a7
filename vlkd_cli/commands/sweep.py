"""`vlkd sweep RECIPE --grid 'KEY=[a,b]' --seeds 0,1,2`: many runs of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import RunsFolder


def sweep(
    recipe: Annotated[str, typer.Argument(help="Path of a YAML file, or a shipped recipe's name.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=[A,B]", help="Values of a key. Repeatable; grids multiply."),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Values of train.seed; by default the recipe's."),
    ] = None,
    random: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many values each --draw gives.")
    ] = 0,
    draw: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=log(A,B)",
            help="Random values of a key: log, uniform, int (both ends), choice[A,B]. Repeatable.",
        ),
    ] = None,
    search_seed: Annotated[int, typer.Option(min=0, help="Seed of the random values.")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key in every cell. Repeatable."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of the sweep; by default runs/RECIPE-sweep.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells that run at a time.")] = 1,
    gpus_per_job: Annotated[
        int, typer.Option(min=1, help="GPUs of each cell, where there are GPUs.")
    ] = 1,
    index: Annotated[
        int | None,
        typer.Option(min=0, help="Run this cell only, here: $SLURM_ARRAY_TASK_ID of a job array."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the cells, and run nothing.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="One step of each shape of cell, and no run.")
    ] = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Train a recipe in every combination of values and seeds; killed cells resume."""
    from vlkd_cli.errors import UserError

    one = {"--index": index is not None, "--list": list_, "--dry-run": dry_run}
    chosen = [option for option, given in one.items() if given]
    if len(chosen) > 1:
        raise UserError(f"{' and '.join(chosen)} exclude each other. Give one of them.")
    idle = {
        "--jobs": jobs != 1,
        "--gpus-per-job": gpus_per_job != 1,
    }
    for option, given in idle.items():
        if given and chosen:
            raise UserError(f"{option} has no effect with {chosen[0]}. Leave it out.")
    if search_seed and not draw:
        raise UserError("--search-seed has no effect without --draw. Leave it out.")
    if folder is not None and runs != Path("runs"):
        raise UserError(f"--runs {runs} has no effect with --folder. Leave it out.")
    from vlkd_cli.engine.launching.start_sweep import SweepRequest, start_sweep

    request = SweepRequest(
        recipe=recipe,
        grids=grid or [],
        draws=draw or [],
        num_random=random,
        search_seed=search_seed,
        seeds=_numbers(seeds),
        overrides=set_ or [],
        folder=folder,
        runs=runs,
        jobs=jobs,
        gpus_per_job=gpus_per_job,
        index=index,
        only_list=list_,
        dry_run=dry_run,
    )
    if code := start_sweep(request):
        raise typer.Exit(code)


def _numbers(seeds: str | None) -> tuple[int, ...]:
    from vlkd_cli.errors import UserError

    if seeds is None:
        return ()
    parts = [part.strip() for part in seeds.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--seeds {seeds}: integers of at least 0, separated by commas: 0,1,2.")
    return tuple(map(int, parts))
