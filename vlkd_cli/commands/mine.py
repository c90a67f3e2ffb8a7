"""`vlkd mine [TARGET] OUT`: hard negative captions for a data set, as a table to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlkd_cli.commands.options import CpuWorkers, Gpus, RunsFolder, Trust


def mine(
    *,
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | CHECKPOINT | FOLDER | RECIPE | MODEL",
            help=(
                "What scores: a run, a checkpoint, a folder of `vlkd export`, a recipe, or"
                " BUILDER:MODEL[:PRETRAINED]; by default the newest run here. Its `data:` is mined."
            ),
        ),
    ] = None,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A .csv or .tsv file.")],
    query: Annotated[
        Literal["image", "text"],
        typer.Option(help="What captions are compared with: each image, or each of its captions."),
    ] = "image",
    num: Annotated[int, typer.Option(min=1, help="Negatives of each query, at most.")] = 4,
    range_: Annotated[
        str,
        typer.Option(
            "--range",
            metavar="FIRST:STOP",
            help="Ranks that are taken from, 0 being the best wrong caption; FIRST: goes to the"
            " end.",
        ),
    ] = "0:100",
    absolute_margin: Annotated[
        float | None,
        typer.Option(min=0, help="Minimum distance of a score below the lowest score of a match."),
    ] = None,
    relative_margin: Annotated[
        float | None,
        typer.Option(min=0, help="The same as a fraction of that score."),
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Highest cosine of a negative.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest cosine of a negative.")] = None,
    positives: Annotated[
        str | None,
        typer.Option(
            metavar="caption | label | COLUMN",
            help="Captions of samples with an equal caption, label or cell of this column are not"
            " negatives of each other; the table has the column too. By default what the recipe's"
            " `positives` is.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any key of the recipe, e.g. data.split=train. Repeatable.",
        ),
    ] = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Find the captions of other samples that look most right, exactly, and write a table with
    them."""
    from vlkd_cli.errors import UserError

    targets = target or []
    if len(targets) > 1:
        raise UserError(
            f"give one target and one output, not {len(targets) + 1} words:"
            f" {' '.join([*targets, str(output)])}."
        )
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.mine import MineJob, start_mining

    status = start_mining(
        MineJob(
            target=targets[0] if targets else None,
            output=str(output),
            query=query,
            num=num,
            ranks=range_,
            absolute_margin=absolute_margin,
            relative_margin=relative_margin,
            max_score=max_score,
            min_score=min_score,
            positives=positives,
            overrides=tuple(set_ or []),
            runs=str(runs),
            trust=trust,
        ),
        gpus=gpus,
        cpu_workers=cpu_workers,
    )
    if status:
        raise typer.Exit(128 + status)
