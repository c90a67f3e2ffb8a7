"""An evaluation table as text: csv, Markdown, LaTeX and JSON, wide or long."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import vlkd_cli
from vlkd_cli.errors import UserError
from vlkd_cli.numerics.statistics import summarize
from vlkd_cli.reports.comparison_table import check_table, escaped
from vlkd_cli.reports.records import Metric
from vlkd_cli.reports.seed_groups import seed_groups
from vlkd_cli.reports.table import LONG_FORM, Table

Layout = Literal["wide", "long"]
SUMMARIES = ("mean", "normalized_mean", "mean_rank")


def write_table(path: Path, table: Table, *, layout: Layout = "wide", digits: int = 3) -> None:
    """Write the table in the format of the file's extension; csv and JSON are not rounded.

    Raises:
        UserError: the extension is none that can be written, or the file cannot be written.
    """
    check_table(path)
    kind = path.suffix.lower()
    if kind == ".json":
        text = json.dumps(_json(table), indent=2) + "\n"
    elif kind == ".csv":
        text = _csv([LONG_FORM, *_long(table)] if layout == "long" else _wide(table))
    else:
        head, *rows = _long_shown(table, digits) if layout == "long" else _shown(table, digits)
        text = (_markdown if kind == ".md" else _latex)(head, rows, table, digits, layout)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--table {path} cannot be written: {error.strerror}.") from error


def shown_rows(table: Table, digits: int = 3) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the wide table, rounded."""
    head, *rows = _shown(table, digits)
    return head, rows


def _wide(table: Table) -> list[list[object]]:
    averages = table.averages
    groups = table.groups
    rows: list[list[object]] = [
        ["target", *table.names, *(each.name for each in groups), *SUMMARIES]
    ]
    rows.append(["chance", *table.chance, *(each.chance for each in groups), None, None, None])
    for number, target in enumerate(table.targets):
        own = [getattr(averages, name)[number] for name in SUMMARIES]
        means = [each.values[number] for each in groups]
        rows.append([target, *table.values[number], *means, *own])
    return rows


def _shown(table: Table, digits: int) -> list[list[str]]:
    head, chance, *rows = _wide(table)

    def text(value: object, is_failed: bool = False) -> str:
        if value is None:
            return "failed" if is_failed else "-"
        return f"{value:.{digits}f}"

    lines = [[str(cell) for cell in head], ["chance", *(text(value) for value in chance[1:])]]
    for row, failed in zip(rows, table.failed, strict=True):
        marks = [*failed, *[False] * (len(row) - 1 - len(failed))]
        cells = [text(value, mark) for value, mark in zip(row[1:], marks, strict=True)]
        lines.append([str(row[0]), *cells])
    return lines


def _long(table: Table) -> list[list[object]]:
    return [[row[name] for name in LONG_FORM] for row in table.rows]


def _long_shown(table: Table, digits: int) -> list[list[str]]:
    def text(name: str, value: object) -> str:
        if value is None:
            return ""
        rounds = isinstance(value, float) and name in ("value", "chance", "low", "high", "seconds")
        return f"{value:.{digits}f}" if rounds else str(value)

    return [
        list(LONG_FORM),
        *([text(name, row[name]) for name in LONG_FORM] for row in table.rows),
    ]


def _json(table: Table) -> dict[str, object]:
    averages = table.averages
    summaries = {
        target: {name: getattr(averages, name)[number] for name in SUMMARIES}
        for number, target in enumerate(table.targets)
    }
    groups = {
        each.name: {"chance": each.chance, **dict(zip(table.targets, each.values, strict=True))}
        for each in table.groups
    }
    return {
        "command": _command(),
        "version": vlkd_cli.__version__,
        "cells": table.rows,
        "columns": table.names,
        "common_columns": [table.names[number] for number in averages.common_columns],
        "summaries": summaries,
        "groups": groups,
        "notes": table.notes,
    }


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return out.getvalue()


def _markdown(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    table: Table,
    digits: int,
    layout: Layout,
) -> str:
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *rows)
    ]
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _latex(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    table: Table,
    digits: int,
    layout: Layout,
) -> str:
    """booktabs; the best of each column is bold, runs of several seeds are summarized below."""
    best = _best(table) if layout == "wide" else {}
    lines = []
    for number, row in enumerate(rows):
        cells = [escaped(cell) for cell in row]
        for column, winners in best.items():
            if number - 1 in winners:
                cells[column] = rf"\textbf{{{cells[column]}}}"
        lines.append(" & ".join(cells) + r" \\")
    if layout == "wide" and lines:
        lines.insert(1, r"\midrule")
        over_seeds = _over_seeds(table, digits)
        lines += [r"\midrule", *over_seeds] if over_seeds else []
    hashes = [
        f"{name}: {_rows(column.hashes)}"
        for name, column in zip(table.names, table.columns, strict=True)
    ]
    return "\n".join(
        [
            f"% {_command()}",
            f"% vlkd {vlkd_cli.__version__}",
            *(f"% rows of {line}" for line in hashes),
            *(f"% {note}" for note in table.notes),
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(escaped(cell) for cell in head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _over_seeds(table: Table, digits: int) -> list[str]:
    """A line of mean and standard deviation for each group of runs that differ in their seed."""
    _, _, *rows = _wide(table)

    def cell(values: list[float | None]) -> str:
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return "-"
        spread = summarize(known)
        return rf"${spread.mean:.{digits}f} \pm {spread.sd:.{digits}f}$"

    return [
        " & ".join(
            [
                escaped(group.name),
                *(
                    cell(list(own))
                    for own in zip(*(rows[n][1:] for n in group.targets), strict=True)
                ),
            ]
        )
        + r" \\"
        for group in seed_groups(table)
    ]


def _best(table: Table) -> dict[int, set[int]]:
    """Targets with the best value of each column of the wide table, whose first is the name.
    Averages over fewer columns than the others' do not compete."""
    found: dict[int, set[int]] = {}
    common = table.averages.common_columns
    has_all = [all(own[number] for number in common) for own in table.possible]
    averages = [
        [value if full else None for value, full in zip(own, has_all, strict=True)]
        for own in (getattr(table.averages, name) for name in SUMMARIES)
    ]
    columns: list[tuple[list[float | None], bool]] = [
        (
            [row[number] for row in table.values],
            Metric("", "", column.metric).lower_is_better,
        )
        for number, column in enumerate(table.columns)
    ]
    columns += [(each.values, False) for each in table.groups]
    columns += [
        (values, name == "mean_rank") for name, values in zip(SUMMARIES, averages, strict=True)
    ]
    for number, (values, lower) in enumerate(columns, start=1):
        known = [value for value in values if value is not None]
        if len(known) > 1:
            best = min(known) if lower else max(known)
            found[number] = {row for row, value in enumerate(values) if value == best}
    return found


def _rows(hashes: str) -> str:
    return str(json.loads(hashes or "{}").get("rows", "unknown"))


def _command() -> str:
    return shlex.join(["vlkd", *sys.argv[1:]])
