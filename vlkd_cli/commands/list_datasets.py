"""`vlkd list-datasets`: the data sets that suites know by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def list_datasets(
    root: Annotated[
        Path | None, typer.Option("--data", help="Folder to look for them in.", show_default=False)
    ] = None,
    search: Annotated[
        str, typer.Option("--search", "-s", help="A glob pattern, or a part of the name.")
    ] = "*",
    here: Annotated[bool, typer.Option("--here", help="Only those that are under --data.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Data sets by name: task, classes, images per split, metric, and whether they are under a
    root."""
    import fnmatch
    import json

    from vlkd_cli import catalog, console
    from vlkd_cli.errors import UserError
    from vlkd_cli.evaluation.datasets.known_sets import known_sets, sets_on_disk

    if root is not None and not root.is_dir():
        raise UserError(f"--data {root}: no such folder.")
    if here and root is None:
        raise UserError("--here needs --data with the folder to look in.")
    known = known_sets()
    found = sets_on_disk(root) if root is not None else {}
    names = [*known, *(name for name in found if name not in known)]
    pattern = search if any(mark in search for mark in "*?[") else f"*{search}*"
    chosen = [
        name
        for name in names
        if fnmatch.fnmatch(name.lower(), pattern.lower()) and (not here or name in found)
    ]
    if not chosen:
        where = f" under {root}" if here else ""
        raise UserError(
            f"--search {search}: no known data set{where}"
            f" matches.{catalog.did_you_mean(search.strip('*'), names)}"
        )
    rows: list[dict[str, object]] = []
    for name in chosen:
        entry = found.get(name)
        facts = known.get(name) or (entry.facts if entry else None)
        row: dict[str, object] = {"name": name, **(facts._asdict() if facts is not None else {})}
        rows.append(
            row
            | {
                "layout": entry.layout if entry else None,
                "path": str(entry.path) if entry else None,
            }
        )
    if json_:
        console.say(json.dumps(rows, indent=2))
        return
    columns = [
        "name",
        "task",
        "classes",
        "train",
        "val",
        "test",
        "metric",
        "elevater",
        "torchvision",
    ]
    if root is not None:
        columns += ["layout", "path"]
    console.print_table("", columns, [[row.get(column) for column in columns] for row in rows])
