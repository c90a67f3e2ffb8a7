"""The table of a comparison on the terminal, in csv, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import UserError
from vlkd_cli.reports.comparison import Comparison, Row

FORMATS = (".csv", ".md", ".tex", ".json")


def columns_of(comparison: Comparison) -> list[str]:
    """The head of the table; one group alone has no differences."""
    differences = [
        f"difference to {comparison.baseline.name}",
        "95 % interval of the difference",
        "over",
    ]
    alone = len(comparison.rows) == 1
    return ["group", "n", "mean", "SD", "95 % interval", *([] if alone else differences), "step"]


def cells_of(comparison: Comparison, row: Row, digits: int = 4) -> list[str]:
    """One line of the table as text; empty if there is nothing to report."""

    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{digits}f}"

    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None else f"{number(low, sign)} to {number(high, sign)}"

    summary, difference = row.summary, row.difference
    is_baseline = row.group is comparison.baseline
    steps = sorted({step for step, _ in row.points})
    differences = [
        "baseline" if is_baseline else number(difference.mean if difference else None, "+"),
        interval(difference.low, difference.high, "+") if difference else "",
        f"{difference.n} {row.over}" if difference else "",
    ]
    return [
        row.group.name,
        str(summary.n),
        number(summary.mean),
        number(summary.sd),
        interval(summary.low, summary.high),
        *([] if len(comparison.rows) == 1 else differences),
        str(steps[0]) if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
    ]


def check_table(path: Path) -> None:
    """Refuse a file whose format is unknown, before anything is computed.

    Raises:
        UserError: the extension is none of those that can be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(
            f"--table {path}: write to a file that ends in {', '.join(FORMATS)}."
            f"{did_you_mean(path.suffix, FORMATS)}"
        )


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write the table in the format of the file's extension.

    Raises:
        UserError: the extension is none of those, or the file cannot be written.
    """
    check_table(path)
    kind = path.suffix.lower()
    if kind == ".json":
        text = json.dumps(_finite(to_json(comparison)), indent=2) + "\n"
    elif kind == ".csv":
        text = _csv(comparison)
    else:
        rows = [cells_of(comparison, row, 3) for row in comparison.rows]
        text = (_markdown if kind == ".md" else _latex)(columns_of(comparison), rows, comparison)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--table {path} cannot be written: {error.strerror}.") from error


def to_json(comparison: Comparison) -> dict[str, object]:
    """Everything, unrounded, with Holm-adjusted p values."""
    return {
        "metric": str(comparison.metric),
        "at": comparison.at,
        "chance": comparison.chance,
        "baseline": comparison.baseline.name,
        "groups": [_group(row) for row in comparison.rows],
        "notes": comparison.notes,
    }


def _finite(value: object) -> object:
    """Plain values in which a number that does not exist is null, as JSON has it."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _group(row: Row) -> dict[str, object]:
    runs = zip(row.group.runs, row.points, strict=True)
    return {
        "name": row.group.name,
        "keys": row.group.keys,
        "runs": [
            {"run": run.name, "seed": run.seed, "step": step, "value": value}
            for run, (step, value) in runs
        ],
        **row.summary._asdict(),
        "rows": row.rows,
        "difference": None
        if row.difference is None
        else {**row.difference._asdict(), "over": row.over, "p": row.p, "holm_p": row.holm_p},
        "left_out": row.left_out,
    }


def _csv(comparison: Comparison) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["n", "mean", "sd", "low", "high"]
    head = ["difference", "difference_low", "difference_high", "over", "pairs", "p", "holm_p"]
    writer.writerow(["group", *names, *head])
    for row in comparison.rows:
        d = row.difference
        own = [d.mean, d.low, d.high, row.over, d.n, row.p, row.holm_p] if d else [None] * 7
        values = [row.group.name, *(getattr(row.summary, name) for name in names), *own]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], comparison: Comparison) -> str:
    lines = [f"{comparison.metric}, {comparison.at} evaluation", ""]
    for cells in (columns, ["---"] * len(columns), *rows):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"- {note}" for note in comparison.notes)]) + "\n"


def _latex(columns: Sequence[str], rows: Sequence[Sequence[str]], comparison: Comparison) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escaped, cells)) + r" \\"

    return "\n".join(
        [
            f"% {comparison.metric}, {comparison.at} evaluation",
            *(f"% {note}" for note in comparison.notes),
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            line(columns),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)
