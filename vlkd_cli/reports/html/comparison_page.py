"""The page of several runs: table, curves with bands, keys against outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlkd_cli.reports.comparison import Comparison, compare
from vlkd_cli.reports.comparison_table import cells_of, columns_of
from vlkd_cli.reports.html import charts, svg
from vlkd_cli.reports.html.pictures import Gallery
from vlkd_cli.reports.html.run_page import Note, Tile, ending, subtitle
from vlkd_cli.reports.html.svg import number
from vlkd_cli.reports.records import RunRecord

MOST_RUNS = 200


def context_of_comparison(runs: Sequence[RunRecord]) -> dict[str, object]:
    """What `comparison.html` is rendered with; see `compare` for what is raised."""
    found = compare(runs)
    groups = [row.group for row in found.rows]
    title = groups[0].name if len(groups) == 1 else f"{len(groups)} groups, {len(runs)} runs"
    return {
        "title": title,
        "subtitle": subtitle(runs[0]),
        "tiles": _tiles(found),
        "notes": [Note(f"{text[0].upper()}{text[1:]}.", _kind(text)) for text in found.notes],
        "panels": charts.group_panels(found, groups),
        "columns": columns_of(found),
        "rows": [(svg.sample(n % 6), cells_of(found, row)) for n, row in enumerate(found.rows)],
        "metric": str(found.metric),
        "at": found.at,
        "runs": _runs(found)[:MOST_RUNS],
        "left_out": max(len(runs) - MOST_RUNS, 0),
        "keys": [(key, [group.keys[key] for group in groups]) for key in groups[0].keys],
        "groups": [group.name for group in groups],
        "parallel": charts.parallel_view(found, groups),
        **ending(found.baseline.runs[0]),
        "pictures": Gallery(),
    }


def _kind(note: str) -> str:
    return "warn" if "optimistic" in note or "failed" in note or "killed" in note else ""


def _tiles(found: Comparison) -> list[Tile]:
    lower = found.metric.lower_is_better
    ranked = [row for row in found.rows if row.is_comparable and math.isfinite(row.summary.mean)]
    best = (min if lower else max)(ranked or found.rows[:1], key=lambda row: row.summary.mean)
    spread = "" if best.summary.sd is None else f" \N{PLUS-MINUS SIGN} {best.summary.sd:.2g}"
    chance = "" if found.chance is None else f"; chance {found.chance:.3g}"
    tiles = [
        Tile(
            str(found.metric),
            f"{number(best.summary.mean)}{spread}",
            f"{'lowest' if lower else 'highest'} mean, {best.group.name}{chance}"
            if len(found.rows) > 1
            else f"mean \N{PLUS-MINUS SIGN} SD, n = {best.summary.n}{chance}",
            "first",
        ),
        Tile("groups", str(len(found.rows)), f"{sum(row.summary.n for row in found.rows)} runs"),
    ]
    if best.difference is not None:
        d = best.difference
        tiles.append(
            Tile(
                f"difference to {found.baseline.name}",
                f"{d.mean:+.4f}",
                f"95 %: {d.low:+.4f} to {d.high:+.4f}, over {d.n} {best.over}",
            )
        )
    return tiles


def _runs(found: Comparison) -> list[list[str]]:
    rows = []
    for row in found.rows:
        for run, (step, value) in zip(row.group.runs, row.points, strict=True):
            last = run.last(found.metric)
            rows.append(
                [
                    run.name,
                    row.group.name,
                    "" if run.seed is None else str(run.seed),
                    run.state.state if run.state else "",
                    number(value),
                    f"{step:,}",
                    "" if last is None else number(last[1]),
                ]
            )
    return rows
