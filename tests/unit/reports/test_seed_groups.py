"""Targets that differ in their seed are summarized in LaTeX."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.run_folders import make_run
from vlkd_cli.reports.seed_groups import SeedGroup, seed_groups
from vlkd_cli.reports.table import Cell, Table, make_table
from vlkd_cli.reports.table_files import write_table


def table_of(folder: Path) -> Table:
    """Three runs, two of which differ in the seed alone, the first one with two checkpoints."""
    runs = {"a": (0, 0.1), "b": (0, 0.2), "c": (1, 0.2)}
    cells = []
    for number, (name, checkpoint, value) in enumerate(
        [("a", "best", 0.1), ("b", "last", 0.5), ("c", "last", 0.6), ("a", "last", 0.3)]
    ):
        run = folder / name
        if not run.exists():
            seed, lr = runs[name]
            make_run(run, seed=seed, keys={"optimizer.lr": lr})
        content = {"primary_metric": "top1", "metrics": {"top1": value}, "model": {"run": name}}
        own = run / "results" / "step_00000030"
        (own / f"x-{number:012x}.json").write_text(json.dumps(content))
        target, key = f"{name}/{checkpoint}", f"{number:012x}"
        cells.append(Cell(number, target, 0, "d", 0, "s", key, str(own), f"{own}/none"))
    return make_table(cells)


def test_runs_of_other_seeds_are_a_group_and_checkpoints_of_a_run_are_none(tmp_path: Path) -> None:
    assert seed_groups(table_of(tmp_path)) == [SeedGroup("b/last and 1 other seed", [1, 2])]


def test_latex_has_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    write_table(tmp_path / "t.tex", table_of(tmp_path))
    line = (tmp_path / "t.tex").read_text().splitlines()[-3]
    # sqrt((0.05^2 + 0.05^2) / 1)
    assert line.startswith(r"b/last and 1 other seed & $0.550 \pm 0.071$ & $0.550 \pm 0.071$ & - &")
