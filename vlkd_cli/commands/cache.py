"""`vlkd cache`: the tables of cached features of frozen towers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

cache = typer.Typer(
    no_args_is_help=True, help="List, fill, move and remove cached features of frozen towers."
)
Folder = Annotated[
    Path | None,
    typer.Option("--cache", help="Cache folder; by default VLKD_CACHE or ~/.cache/vlkd."),
]


@cache.command("list")
def list_cache(
    folder: Folder = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show every table: tower, view, augmentation, rows, stored fraction, bytes, last use."""
    import json
    from datetime import datetime

    from vlkd_cli import console
    from vlkd_cli.cache_folder import cache_folder
    from vlkd_cli.features.cached_tables import list_tables

    directory = cache_folder(folder)
    rows = [
        {
            "table": table.name,
            "tower": table.about.tower if table.about else "?",
            "output": table.about.output if table.about else "?",
            "view": table.about.view if table.about else "?",
            "draw": table.about.draw if table.about else None,
            "rows": table.rows,
            "width": table.width,
            "stored": table.stored,
            "bytes": table.size_bytes,
            "last_use": datetime.fromtimestamp(table.used).isoformat(" ", "minutes"),
        }
        for table in list_tables(directory)
    ]
    if json_:
        console.say(json.dumps(rows, indent=2))
    elif not rows:
        console.say(f"{directory} holds no table of features.")
    else:
        shown = [
            [
                "" if key == "draw" and value is None else _shown(key, value)
                for key, value in row.items()
            ]
            for row in rows
        ]
        console.print_table(str(directory), list(rows[0]), shown)


def _shown(key: str, value: object) -> str:
    if key == "stored":
        return f"{value:.1%}"
    return f"{value:,}" if key in ("rows", "bytes") else str(value)


@cache.command("fill")
def fill_cache(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a shipped recipe.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key first. Repeatable."),
    ] = None,
) -> None:
    """Compute the features of towers with `cache: {draws: K}` before the run.

    Features that are stored already stay; an interrupted command resumes when it is repeated."""
    from vlkd_cli.engine.draw_fill import fill_ahead

    fill_ahead(recipe, set_ or [])


@cache.command("export")
def export_cache(
    file: Annotated[Path, typer.Argument(help="The tar file to write.")],
    tables: Annotated[
        list[str] | None,
        typer.Argument(help="Tables by the names of `vlkd cache list`; by default all."),
    ] = None,
    folder: Folder = None,
) -> None:
    """Write tables into one file for another machine."""
    from vlkd_cli import console
    from vlkd_cli.cache_folder import cache_folder
    from vlkd_cli.features.cached_tables import export_tables

    chosen = export_tables(cache_folder(folder), file, tables or [])
    console.say(
        f"{file}: {len(chosen)} table{'s' if len(chosen) > 1 else ''}. There: vlkd cache import"
        f" {file.name}"
    )


@cache.command("import")
def import_cache(
    file: Annotated[Path, typer.Argument(help="A file of `vlkd cache export`.")],
    folder: Folder = None,
) -> None:
    """Take in the tables of a file after comparing digests; rows that are here stay."""
    from vlkd_cli import console
    from vlkd_cli.cache_folder import cache_folder
    from vlkd_cli.errors import UserError
    from vlkd_cli.features.cached_tables import import_tables

    if not file.is_file():
        raise UserError(f"{file}: no such file. Write it with `vlkd cache export {file.name}`.")
    for name, rows in import_tables(cache_folder(folder), file):
        console.say(f"{name}: {rows:,} rows")


@cache.command("prune")
def prune_cache(
    unused_for: Annotated[
        float,
        typer.Option("--unused-for", metavar="DAYS", min=0, help="Days since the last use."),
    ],
    folder: Folder = None,
) -> None:
    """Remove the tables that no command has opened for a while."""
    from vlkd_cli import console
    from vlkd_cli.cache_folder import cache_folder
    from vlkd_cli.features.cached_tables import prune_tables

    removed = prune_tables(cache_folder(folder), unused_for)
    freed = sum(table.size_bytes for table in removed)
    console.say(f"Removed {len(removed)} tables, {freed / 2**20:,.1f} MiB.")
