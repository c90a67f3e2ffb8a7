"""`vlkd eval [RUN | CHECKPOINT | RECIPE] --suite NAME[,NAME...]`: measure towers, trained or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def evaluate(
    target: Annotated[
        Optional[str], typer.Argument(metavar="[RUN | CHECKPOINT | RECIPE]", help="What to evaluate; by default the newest run here.")
    ] = None,
    suite: Annotated[Optional[str], typer.Option(metavar="NAME[,NAME...]", help="Suites to run; by default those of the recipe.")] = None,
    with_: Annotated[
        Optional[list[str]], typer.Option("--with", metavar="KEY=VALUE", help="Set a key of the suites, e.g. data.split=test. Repeatable.")
    ] = None,
    set_: Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe. Repeatable.")] = None,
    data: Annotated[Optional[Path], typer.Option(help="Folder where suites look for their data sets.")] = None,
    datasets: Annotated[Optional[str], typer.Option(metavar="NAME[,NAME...]", help="Only these data sets, for suites that have several.")] = None,
    mode: Annotated[Optional[str], typer.Option(help="How ELEVATER is run: zero_shot, linear_probe or fine_tune.")] = None,
    shots: Annotated[Optional[int], typer.Option(help="Training images per class; for suites with shots.")] = None,
    seeds: Annotated[Optional[str], typer.Option(metavar="N[,N...]", help="Seeds of the draws; for suites with shots.")] = None,
    wise_ft: Annotated[
        Optional[str], typer.Option(metavar="A[,A...]", help="Interpolate the image tower between its start (0) and its end (1).")
    ] = None,
    gpus: Annotated[Optional[int], typer.Option(min=1, help="Worker processes on this machine, one per GPU.")] = None,
    cpu_workers: Annotated[Optional[int], typer.Option(min=1, help="Worker processes on this machine, on the CPU.")] = None,
    output: Annotated[Optional[Path], typer.Option(help="Also write all results to this JSON file.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder that holds all runs.")] = Path("runs"),
) -> None:
    """Evaluate a run, a checkpoint, or the untrained towers of a recipe."""
    from vlkd_cli.engine.start_evaluation import start_evaluation

    given = {"datasets": datasets, "mode": mode, "shots": shots, "seeds": seeds}
    status = start_evaluation(
        target=target,
        suites=suite.split(",") if suite else [],
        suite_settings=[*(with_ or []), *(f"{key}={_listed(value)}" for key, value in given.items() if value is not None)],
        overrides=set_ or [],
        data_root=data,
        wise_ft=wise_ft,
        gpus=gpus,
        cpu_workers=cpu_workers,
        output=output,
        runs=runs,
    )
    if status:
        raise typer.Exit(128 + status)


def _listed(value: object) -> str:
    """A comma-separated option as YAML: "a,b" -> "[a, b]"; seeds are a list even when there is one."""
    return f"[{value}]" if isinstance(value, str) and ("," in value or value.isdigit()) else str(value)
