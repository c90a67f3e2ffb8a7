"""`vlkd list-models`: the towers that can be named in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def list_models(
    task: Annotated[
        Literal["text-to-text", "image-to-image", "text-to-image", "mesh-to-mesh", "synthesis"]
        | None,
        typer.Option(
            "--task",
            "-t",
            help="The models of a task, by the names that `image: NAME` in a recipe takes.",
            show_default=False,
        ),
    ] = None,
    all_: Annotated[
        bool,
        typer.Option(
            "--all", help="With --task: also every model of the builders, as BUILDER:MODEL."
        ),
    ] = False,
    builder: Annotated[
        str | None,
        typer.Option("--builder", "-b", help="Only this builder's models.", show_default=False),
    ] = None,
    modality: Annotated[
        Literal["image", "text", "mesh"] | None,
        typer.Option(help="Only towers for images, texts or meshes.", show_default=False),
    ] = None,
    search: Annotated[
        str,
        typer.Option(
            "--search", "-s", help="A glob pattern, e.g. 'resnet*', or a part of the name."
        ),
    ] = "*",
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Only models with published weights.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list instead of a table.")
    ] = False,
) -> None:
    """Models by name, with their width, size and pretrained tags."""
    import json as json_library

    from vlkd_cli import catalog, console
    from vlkd_cli.builders.listing import choose, rows_of
    from vlkd_cli.errors import MissingPackageError, UserError

    if task is not None:
        unused = {"--builder": builder, "--modality": modality, "--pretrained": pretrained or None}
        for option, value in unused.items():
            if value is not None:
                raise UserError(f"{option} has no effect with --task. Leave one of them out.")
        _list_task(task, search, json, every=all_)
        return
    if all_:
        raise UserError("--all has no effect without --task. Name a task, or leave it out.")
    known = catalog.names("builder")
    if builder is not None and builder not in known:
        raise UserError(
            f"--builder: no builder '{builder}'.{catalog.did_you_mean(builder, known)} Known:"
            f" {', '.join(known)}."
        )
    rows = []
    for name in [builder] if builder else known:
        try:
            rows += rows_of(name)
        except MissingPackageError as error:
            if builder:
                raise
            console.warn(f"{error} Its models are left out.")
    found = choose(rows, modality=modality, pattern=search, pretrained=pretrained)
    if not found:
        where = f" of builder '{builder}'" if builder else ""
        kind = " ".join(
            word for word in ("pretrained" if pretrained else "", modality or "") if word
        )
        near = catalog.did_you_mean(search.strip("*"), {row["name"] for row in rows})
        raise UserError(
            f"--search: no {kind + ' ' if kind else ''}model{where} matches '{search}'.{near}"
        )
    if json:
        console.say(json_library.dumps(found, indent=2))
        return
    columns = ["name", "builder", "modality", "width", "parameters", "input px", "pretrained"]
    console.print_table(
        "",
        columns,
        [
            (
                row["name"],
                row["builder"],
                row["modality"],
                row["width"],
                _millions(row["parameters"]),
                row["image_size_px"],
                ", ".join(row["pretrained"]),
            )
            for row in found
        ],
    )


def _list_task(task: str, pattern: str, json: bool, *, every: bool) -> None:
    import json as json_library

    from vlkd_cli import console
    from vlkd_cli.builders.by_task import describe_models, every_model
    from vlkd_cli.builders.listing import matches
    from vlkd_cli.catalog import did_you_mean
    from vlkd_cli.errors import UserError

    rows = every_model(task) if every else describe_models(task)
    found = [row for row in rows if matches(row["name"], pattern)]
    if not found:
        near = did_you_mean(pattern.strip("*"), [row["name"] for row in rows])
        raise UserError(f"--search: no model of task '{task}' matches '{pattern}'.{near}")
    if json:
        console.say(json_library.dumps(found, indent=2))
        return
    columns = ["name", "task", "output_dim", "parameters", "architecture", "on disk", "description"]
    console.print_table(
        "",
        columns,
        [
            (
                row["name"],
                row["task"],
                row["output_dim"],
                _millions(row["parameters"]),
                row["architecture"],
                "yes" if row["on_disk"] else "no",
                row["description"],
            )
            for row in found
        ],
    )
    for row in found:
        if row["missing"]:
            console.say(f"{row['name']} cannot be used: this version has no {row['missing']}.")
    unknown = [
        row["name"]
        for row in found
        if row["output_dim"] is None and row["towers"] and ":" not in row["name"]
    ]
    if unknown:
        console.say(f"The output_dim of {', '.join(unknown)} is known once the model is fetched.")


def _millions(count: int | None) -> str | None:
    return f"{count / 1e6:.1f}M" if count else None
