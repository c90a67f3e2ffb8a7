"""`vlkd encode [TARGET] INPUT OUT`: vectors of images or texts into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlkd_cli.commands.options import CpuWorkers, Gpus, Overrides, RunsFolder, Trust


def encode(
    *,
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | CHECKPOINT | FOLDER | RECIPE | MODEL",
            help=(
                "What encodes: a run, a checkpoint, a folder of `vlkd export`, a recipe, or"
                " BUILDER:MODEL[:PRETRAINED]; by default the newest run here."
            ),
        ),
    ] = None,
    input_: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help=(
                "A folder of images or meshes, a .csv or .tsv table, a .txt file with a text (or"
                " the path of an image) in each line, a BEIR folder or .jsonl file, or - for texts"
                " from standard input."
            ),
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A .npy or .parquet file, or - for standard output (npy)."
        ),
    ],
    tower: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A tower, or image, text or mesh; by default the one that fits INPUT.",
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which column of a table is encoded.")
    ] = None,
    reader: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Set a key of the reader of INPUT, e.g. sep=';'; reader=NAME chooses another."
            " Repeatable.",
        ),
    ] = None,
    output_name: Annotated[
        str,
        typer.Option(
            "--output",
            metavar="NAME",
            help="Which output of the tower: head, backbone, tokens (a vector for each position) or"
            " the name of a head.",
        ),
    ] = "head",
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write what the output paints as a PNG file for each image, where it was trained"
            " on pixels.",
        ),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize/--raw", help="L2-normalize the vectors, or not.")
    ] = True,
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type of the numbers in OUT.")
    ] = "float32",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="Of the forward pass; by default the recipe's."),
    ] = None,
    set_: Overrides = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Encode images, texts or meshes, as the suites do. Items that cannot be read are listed and
    left out; the same command resumes what was interrupted."""
    from vlkd_cli.errors import UserError

    # The only form of an optional word before required ones that option parsers know is a list.
    targets = target or []
    if len(targets) > 1:
        raise UserError(
            f"give one target, one input and one output, not {len(targets) + 2} words:"
            f" {' '.join([*targets, input_, output])}."
        )
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.encode import EncodeJob, start_encoding
    from vlkd_cli.engine.items import parse_keys

    status = start_encoding(
        EncodeJob(
            target=targets[0] if targets else None,
            source=(input_, column, parse_keys(reader or [])),
            output=output,
            tower=tower,
            overrides=tuple(set_ or []),
            runs=str(runs),
            trust=trust,
            normalize=normalize,
            dtype=dtype,
            precision=precision,
            features=output_name,
            pictures=None if pictures is None else str(pictures),
        ),
        gpus=gpus,
        cpu_workers=cpu_workers,
    )
    if status:
        raise typer.Exit(128 + status)
