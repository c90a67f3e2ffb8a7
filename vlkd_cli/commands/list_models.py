"""`vlkd list-models`: the towers that can be named in a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def list_models(
    builder: Annotated[
        str | None,
        typer.Option("--builder", "-b", help="Only this builder's models.", show_default=False),
    ] = None,
    modality: Annotated[
        Literal["image", "text"] | None,
        typer.Option(help="Only towers for images or for texts.", show_default=False),
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
                f"{row['parameters'] / 1e6:.1f}M" if row["parameters"] else None,
                row["image_size_px"],
                ", ".join(row["pretrained"]),
            )
            for row in found
        ],
    )
