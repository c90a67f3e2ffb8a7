"""`vlkd eval [MODEL...] --suite NAME[,NAME...]`: measure towers, trained or not; many models on
many data sets as one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlkd_cli.commands.options import CpuWorkers, Gpus, Overrides, RunsFolder, Trust


class Layout(StrEnum):
    """How a table is laid out."""

    wide = "wide"
    long = "long"


class Missing(StrEnum):
    """What happens to data sets that are not there."""

    refuse = "refuse"
    leave_out = "leave_out"


def evaluate(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL...]",
            help="Runs, checkpoints, recipes, exported folders, BUILDER:MODEL[:TAG] or @FILE with"
            " one a line; by default the newest run here.",
            show_default=False,
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
    set_: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder where suites look for their data sets.")
    ] = None,
    datasets: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Of a table: data sets below --data, `all`, a collection (elevater, vtab,"
            " imagenet_robustness, retrieval, sugar_crepe, aro, xtd10, crossmodal3600) or"
            " FILE.yaml:LIST. Else only these data sets, for suites that have several.",
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
        typer.Option(metavar="N[,N...]", help="Seeds of the sampled shots; for suites with shots."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            metavar="all|LANG[,LANG...]", help="Languages to measure; for suite retrieval."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME...]", help="Tasks of suites mteb and senteval."),
    ] = None,
    wise_ft: Annotated[
        str | None,
        typer.Option(
            metavar="A[,A...]",
            help="Interpolate the trained towers between their start (0) and their end (1).",
        ),
    ] = None,
    wise_ft_tower: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --wise-ft: only this tower. Repeatable."),
    ] = None,
    gpus: Gpus = None,
    cpu_workers: CpuWorkers = None,
    output: Annotated[
        Path | None, typer.Option(help="Also write all results to this JSON file.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Measure every model on every data set, into .csv, .md, .tex or .json."),
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="Of a table: a column or a line per value.")
    ] = Layout.wide,
    metrics: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Of a table: primary, all, or names.")
    ] = "primary",
    digits: Annotated[int, typer.Option(min=0, help="Of a table in .md and .tex: decimals.")] = 3,
    jobs: Annotated[
        int, typer.Option(min=1, help="Of a table: processes that share its cells.")
    ] = 1,
    redo: Annotated[
        bool, typer.Option("--redo", help="Of a table: measure again what was measured before.")
    ] = False,
    missing: Annotated[
        Missing, typer.Option(help="Of a table: what to do about data sets that are not there.")
    ] = Missing.refuse,
    list_: Annotated[
        bool, typer.Option("--list", help="Of a table: show its cells, and measure nothing.")
    ] = False,
    trust: Trust = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Evaluate runs, checkpoints, recipes or pretrained models."""
    from vlkd_cli import console

    console.announce("Loading torch ...")
    targets = targets or []
    of_table = {
        "--layout": layout is not Layout.wide,
        "--metrics": metrics != "primary",
        "--digits": digits != 3,
        "--jobs": jobs != 1,
        "--redo": redo,
        "--missing": missing is not Missing.refuse,
        "--list": list_,
    }
    given = {
        "mode": mode,
        "shots": shots,
        "seeds": seeds,
        "languages": languages,
        "tasks": tasks,
    }
    settings = [*(with_ or []), *_as_settings(given)]
    if table is not None or len(targets) > 1 or any(word.startswith("@") for word in targets):
        _refuse_idle(
            "a table",
            {
                "--gpus": gpus is not None,
                "--cpu-workers": cpu_workers not in (None, 1),
                "--wise-ft": wise_ft is not None,
                "--wise-ft-tower": bool(wise_ft_tower),
                "--output": output is not None,
            },
            "Use --jobs for several processes, and --table FILE.json for all results.",
        )
        _refuse_idle_layout(table, layout, digits)
        from vlkd_cli.engine.launching.start_table import TableRequest, start_table

        request = TableRequest(
            targets=targets,
            suites=_names("--suite", suite),
            datasets=_names("--datasets", datasets),
            suite_settings=settings,
            overrides=set_ or [],
            data_root=data,
            table=table,
            layout=layout.value,
            metrics=_names("--metrics", metrics),
            digits=digits,
            jobs=jobs,
            redo=redo,
            missing=missing.value,
            only_list=list_,
            device="auto" if cpu_workers is None else "cpu",
            runs=runs,
            trust=trust,
        )
        if code := start_table(request):
            raise typer.Exit(code)
        return
    _refuse_idle("one model without --table", of_table, "Add --table FILE, or leave it out.")
    from vlkd_cli.engine.launching.start_evaluation import start_evaluation

    status = start_evaluation(
        target=targets[0] if targets else None,
        suites=_names("--suite", suite),
        suite_settings=[*settings, *_as_settings({"datasets": datasets})],
        overrides=set_ or [],
        data_root=data,
        wise_ft=wise_ft,
        wise_ft_towers=wise_ft_tower or [],
        gpus=gpus,
        cpu_workers=cpu_workers,
        output=output,
        runs=runs,
        trust=trust,
    )
    if status:
        raise typer.Exit(128 + status)


def _names(option: str, text: str | None) -> list[str]:
    """The names of a comma-separated option; none where it is not given.

    Raises:
        UserError: one of them is empty.
    """
    from vlkd_cli.errors import UserError

    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{option} '{text}': a name is empty. Separate names by single commas.")
    return names


def _as_settings(given: Mapping[str, object]) -> list[str]:
    """Options that are short for keys of the suites, as in `--with`.

    Raises:
        UserError: one of them is empty.
    """
    from vlkd_cli.errors import UserError
    from vlkd_cli.recipe.overrides import Setting

    for key, value in given.items():
        if isinstance(value, str) and not value.strip("[], "):
            raise UserError(f"--{key} is empty. Name something, or leave it out.")
    return [
        Setting(f"{key}={_listed(key, value)}", f"--{key} {value}")
        for key, value in given.items()
        if value is not None
    ]


def _refuse_idle(what: str, given: dict[str, bool], remedy: str) -> None:
    from vlkd_cli.errors import UserError

    for option, is_given in given.items():
        if is_given:
            raise UserError(f"{option} has no effect with {what}. {remedy}")


def _refuse_idle_layout(table: Path | None, layout: Layout, digits: int) -> None:
    is_rounded = table is None or table.suffix.lower() in (".md", ".tex")
    _refuse_idle(
        f"--table {table}",
        {"--digits": digits != 3 and not is_rounded},
        "csv and JSON are not rounded. Leave it out.",
    )
    has_layout = table is not None and table.suffix.lower() != ".json"
    _refuse_idle(
        "JSON or without --table",
        {"--layout": layout is not Layout.wide and not has_layout},
        "Write to .csv, .md or .tex, or leave it out.",
    )


def _listed(key: str, value: object) -> str:
    """A comma-separated option as YAML: "a,b" -> "[a, b]"; seeds and tasks are a list even when
    there is one."""
    is_list = isinstance(value, str) and (key in ("seeds", "tasks") or "," in value)
    return f"[{value}]" if is_list and str(value)[:1] != "[" else str(value)
