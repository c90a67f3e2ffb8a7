"""Targets of an evaluation table that are runs of one recipe with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.reports.comparison import group_runs
from vlkd_cli.reports.records import read_run
from vlkd_cli.reports.table import Table


class SeedGroup(NamedTuple):
    """Two or more targets that differ in the seed alone, by their numbers in the table."""

    name: str
    targets: list[int]


def seed_groups(table: Table) -> list[SeedGroup]:
    """The groups among the targets that are runs; several checkpoints of one run are none."""
    folders: dict[Path, set[str]] = {}
    for row in table.rows:
        if row["run"] and row["status"] == "done" and (run := _run_of(Path(str(row["file"])))):
            folders.setdefault(run, set()).add(str(row["target"]))
    target_of = {run: own.pop() for run, own in folders.items() if len(own) == 1}
    found = []
    for group in group_runs([read_run(folder) for folder in target_of]):
        if len({run.seed for run in group.runs}) == len(group.runs) > 1:
            numbers = sorted(table.targets.index(target_of[run.path]) for run in group.runs)
            found.append(SeedGroup(_named([table.targets[n] for n in numbers]), numbers))
    return found


def _run_of(file: Path) -> Path | None:
    """The run folder that a result file is in."""
    return next((place for place in file.parents if (place / "recipe.yaml").is_file()), None)


def _named(targets: Sequence[str]) -> str:
    return f"{targets[0]} and {len(targets) - 1} other seed{'s' if len(targets) > 2 else ''}"
