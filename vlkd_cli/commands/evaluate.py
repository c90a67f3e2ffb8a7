"""`vlkd eval [RUN | CHECKPOINT | RECIPE] --suite NAME[,NAME...]`: measure towers, trained or
not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN | CHECKPOINT | RECIPE]",
            help="What to evaluate; by default the newest run here.",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]", help="Suites to run; by default those of the recipe."
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="KEY=VALUE",
            help="Set a key of the suites, e.g. data.split=test. Repeatable.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe. Repeatable."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder where suites look for their data sets.")
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]", help="Only these data sets, for suites that have several."
        ),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="How ELEVATER is run: zero_shot, linear_probe or fine_tune.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Training images per class; for suites with shots.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="N[,N...]", help="Seeds of the draws; for suites with shots."),
    ] = None,
    wise_ft: Annotated[
        str | None,
        typer.Option(
            metavar="A[,A...]",
            help="Interpolate the image tower between its start (0) and its end (1).",
        ),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine, one per GPU.")
    ] = None,
    cpu_workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine, on the CPU.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write all results to this JSON file.")
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Let the run's recipe run code from outside vlkd.",
        ),
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
) -> None:
    """Evaluate a run, a checkpoint, or the untrained towers of a recipe."""
    from vlkd_cli import console

    console.announce("Loading torch ...")
    from vlkd_cli.engine.launching.start_evaluation import start_evaluation

    given = {"datasets": datasets, "mode": mode, "shots": shots, "seeds": seeds}
    status = start_evaluation(
        target=target,
        suites=suite.split(",") if suite else [],
        suite_settings=[
            *(with_ or []),
            *(f"{key}={_listed(value)}" for key, value in given.items() if value is not None),
        ],
        overrides=set_ or [],
        data_root=data,
        wise_ft=wise_ft,
        gpus=gpus,
        cpu_workers=cpu_workers,
        output=output,
        runs=runs,
        trust=trust,
    )
    if status:
        raise typer.Exit(128 + status)


def _listed(value: object) -> str:
    """A comma-separated option as YAML: "a,b" -> "[a, b]"; seeds are a list even when there is
    one."""
    return (
        f"[{value}]" if isinstance(value, str) and ("," in value or value.isdigit()) else str(value)
    )
