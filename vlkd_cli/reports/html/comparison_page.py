"""The page of several runs: table, curves with bands, keys against outcome."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlkd_cli.reports.comparison import Comparison, Row, compare
from vlkd_cli.reports.comparison_table import cells_of, columns_of
from vlkd_cli.reports.html import charts, svg
from vlkd_cli.reports.html.pictures import Gallery
from vlkd_cli.reports.html.run_page import Note, Tile, ending, subtitle
from vlkd_cli.reports.html.svg import number
from vlkd_cli.reports.records import RunRecord

MOST_RUNS = 200
MANY = 24
"""Rows of a table from which it is folded."""


def context_of_comparison(runs: Sequence[RunRecord]) -> dict[str, object]:
    """What `comparison.html` is rendered with; see `compare` for what is raised."""
    found = compare(runs)
    groups = [row.group for row in found.rows]
    styles = charts.group_styles(found)
    samples = [svg.sample(style) for style in styles]
    title = groups[0].name if len(groups) == 1 else f"{len(groups)} groups, {len(runs)} runs"
    return {
        "title": title,
        "subtitle": subtitle(runs[0]),
        "tiles": _tiles(found),
        "notes": [Note(_sentence(text, found), _kind(text)) for text in found.notes],
        "panels": charts.group_panels(found, groups, styles),
        "columns": columns_of(found),
        "rows": [
            (sample, cells_of(found, row)) for sample, row in zip(samples, found.rows, strict=True)
        ],
        "metric": str(found.metric),
        "at": found.at,
        "runs": _runs(found)[:MOST_RUNS],
        "left_out": max(len(runs) - MOST_RUNS, 0),
        "many": MANY,
        "keys": list(groups[0].keys),
        "groups": [
            (sample, group.name, list(group.keys.values()))
            for sample, group in zip(samples, groups, strict=True)
        ],
        "parallel": charts.parallel_view(found, groups, styles),
        **ending(found.baseline.runs[0]),
        "pictures": Gallery(),
    }


def _sentence(note: str, found: Comparison) -> str:
    """A note with a capital and a full stop; the name of a group or run that it begins with is
    left as it is."""
    names = [name for row in found.rows for name in (row.group.name, *_names(row))]
    is_name = any(note.startswith(f"{name}:") for name in names)
    return f"{note}." if is_name else f"{note[0].upper()}{note[1:]}."


def _names(row: Row) -> list[str]:
    return [run.name for run in row.group.runs]


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
