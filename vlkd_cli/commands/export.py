"""`vlkd export [RUN | CHECKPOINT] OUTPUT_FOLDER`: a run's towers for programs other than vlkd."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlkd_cli.commands.options import Overrides, RunsFolder, Trust


def export(
    *,
    target: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN | CHECKPOINT", help="What to export; by default the newest run here."
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT_FOLDER", help="Output folder; each tower gets a sub-folder."
        ),
    ],
    tower: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this tower. Repeatable.")
    ] = None,
    set_: Overrides = None,
    format_: Annotated[
        Literal["library", "onnx", "open_clip", "hf_clip", "sentence_transformers"],
        typer.Option(
            "--format",
            help="`library`: each tower as its library has it; `onnx`: for onnxruntime, from uint8"
            " pixels and token ids to vectors; `open_clip`, `hf_clip`: an image and a text tower"
            " as one model; `sentence_transformers`: text towers with their heads.",
        ),
    ] = "library",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="With onnx: L2-normalize the vectors in the file.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="With onnx: also write 8-bit weights, and print what both score on the recipe's"
            " `evals`.",
        ),
    ] = False,
    wise_ft: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="ALPHA",
            help="Write the trained towers so far from their start (0) to their end (1); `vlkd eval"
            " --wise-ft` measures them.",
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Also write README.md: a model card with results, data and recipe."
        ),
    ] = False,
    license_: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Of the card, e.g. apache-2.0."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Of the card, e.g. en. Repeatable."),
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Of the card: a data set on the hub. Repeatable."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="Also send the export and its card to the Hugging Face hub, with the token of"
            " HF_TOKEN or of the hub's login.",
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: create a private repository.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace towers that are in the folder already.")
    ] = False,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Write trained towers as their libraries have them, adapters merged, to be loaded without
    vlkd."""
    from vlkd_cli.errors import UserError

    # The only form of an optional word before a required one that option parsers know is a list.
    targets = target or []
    if len(targets) > 1:
        raise UserError(
            f"expected one run or checkpoint and one folder, got {len(targets) + 1} words:"
            f" {' '.join(targets)} {output}."
        )
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.export import export as export_towers
    from vlkd_cli.engine.hand_over import HandOver

    export_towers(
        target=targets[0] if targets else None,
        output=output,
        towers=tower or [],
        overrides=set_ or [],
        force=force,
        runs=runs,
        trust=trust,
        format=format_,
        normalize=normalize,
        int8=int8,
        wise_ft=wise_ft,
        hand_over=HandOver(card, license_, language or (), dataset or (), push, private),
    )
