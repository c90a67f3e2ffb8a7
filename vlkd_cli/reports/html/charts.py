"""Which charts a page has: panels of results and of training, of one run and of several."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vlkd_cli.recipe.overrides import short_names
from vlkd_cli.reports.comparison import Comparison, Group
from vlkd_cli.reports.html import svg
from vlkd_cli.reports.html.svg import Axis, Line
from vlkd_cli.reports.records import Metric, RunRecord, Series

MOST_RESULT_PANELS = 12
MOST_LINES = 6
TITLES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "samples_per_second": "samples per second",
    "data_wait": "fraction of the time spent waiting for data",
}
NOT_CHARTED = {"epoch", "skipped_steps"}


class Panel(NamedTuple):
    """A chart with its heading and legend."""

    title: str
    subtitle: str
    chart: str
    legend: list[tuple[str, str]]
    """A sample of the line and its name."""


def words(metric: str) -> str:
    """A metric's name as words: `image_to_text_R@1` -> `image to text R@1`."""
    return metric.replace("_", " ")


def result_panels(run: RunRecord) -> list[Panel]:
    """The primary metric of each suite and data set with chance and best, then their other metrics
    in families; those evaluated once are in the table only."""
    panels, families = [], []
    for primary in run.primary_metrics():
        series = run.evaluations[primary]
        if len(series) > 1:
            direction = "lower is better" if primary.lower_is_better else "higher is better"
            chart = svg.line_chart(
                str(primary),
                [Line(words(primary.name), series)],
                chance=run.chance(primary),
                best=run.best(primary),
            )
            panels.append(Panel(str(primary), direction, chart, []))
        families += _families(run, primary)
    return [*panels, *families][:MOST_RESULT_PANELS]


def _families(run: RunRecord, primary: Metric) -> list[Panel]:
    """R@1, R@5 and R@10 of one direction share a panel; so do further fractions."""
    families: dict[str, list[tuple[str, Series]]] = {}
    for metric, series in run.evaluations.items():
        if metric[:2] != primary[:2] or metric == primary or len(series) < 2:
            continue
        if metric.lower_is_better or not all(0 <= value <= 1 for _, value in series):
            continue
        family = re.fullmatch(r"(.+)_(R@\d+)", metric.name)
        name, short = (family[1], family[2]) if family else ("", words(metric.name))
        families.setdefault(name, []).append((short, series))
    panels = []
    for prefix, members in families.items():
        lines = [Line(name, s, n) for n, (name, s) in enumerate(members[:MOST_LINES])]
        title = words(prefix) if prefix else f"{primary.suite}.{primary.dataset}"
        first = "" if len(members) <= MOST_LINES else f"the first {MOST_LINES} of {len(members)} "
        subtitle = "recall" if prefix else f"{first}other metrics"
        panels.append(_panel(title, subtitle, lines))
    return panels


def training_panels(training: Mapping[str, Series]) -> list[Panel]:
    """Loss terms together, then every other logged value."""
    known = [name for name in TITLES if name in training]
    terms = [n for n in training if n not in TITLES and n not in NOT_CHARTED and "." not in n]
    rest = [name for name in training if "." in name]
    panels = []
    for name in [*known, *rest]:
        series = training[name]
        if len(series) < 2:
            continue
        if name != "loss" or len(terms) < 2:
            subtitle = terms[0] if name == "loss" and len(terms) == 1 else ""
            panels.append(_panel(TITLES.get(name, words(name)), subtitle, [Line(name, series)]))
            continue
        lines = [Line(n, training[n], i) for i, n in enumerate(["loss", *terms][:MOST_LINES])]
        first = "" if len(terms) < MOST_LINES else f"the first {MOST_LINES - 1} of "
        panels.append(_panel("loss", f"and {first}its {len(terms)} terms", lines))
    return panels


def group_styles(comparison: Comparison) -> list[int]:
    """The style of each group. Of more than there are styles, the baseline and the best ones have
    one of their own, and the others are gray."""
    rows = comparison.rows
    sign = 1 if comparison.metric.lower_is_better else -1

    def place(number: int) -> tuple[bool, bool, float]:
        row = rows[number]
        is_ranked = row.is_comparable and math.isfinite(row.summary.mean)
        is_baseline = row.group is comparison.baseline
        return (not is_baseline, not is_ranked, sign * row.summary.mean if is_ranked else 0.0)

    chosen = sorted(sorted(range(len(rows)), key=place)[: svg.NUM_STYLES])
    return [chosen.index(n) if n in chosen else svg.OTHER for n in range(len(rows))]


def group_panels(
    comparison: Comparison, groups: Sequence[Group], styles: Sequence[int]
) -> list[Panel]:
    """The compared metric and the loss of every group: mean over seeds, band of one standard
    deviation at the steps that all seeds have."""
    metric = comparison.metric
    panels = []
    for title, subtitle, chance, name in (
        (str(metric), "mean over seeds, band: \N{PLUS-MINUS SIGN} 1 SD", comparison.chance, None),
        ("loss", "mean over seeds, band: \N{PLUS-MINUS SIGN} 1 SD", None, "loss"),
    ):
        lines = []
        for style, group in sorted(zip(styles, groups, strict=True), key=lambda each: each[0]):
            runs = [
                run.evaluations.get(metric, []) if name is None else run.training.get(name, [])
                for run in group.runs
            ]
            mean, band = mean_and_band([series for series in runs if series])
            if len(mean) > 1:
                lines.append(Line(group.name, mean, style, band))
        if lines:
            panels.append(_panel(title, subtitle, lines, chance=chance))
    return panels


def mean_and_band(
    runs: Sequence[Series],
) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """Mean and mean -+ one standard deviation (n - 1) at the steps that all runs have."""
    if not runs:
        return [], []
    values = [dict(series) for series in runs]
    common = sorted(set.intersection(*map(set, values)))
    steps = [s for s in common if all(math.isfinite(own[s]) for own in values)]
    mean: list[tuple[float, float]] = []
    band: list[tuple[float, float, float]] = []
    for step in _few(steps):
        at = [own[step] for own in values]
        middle = statistics.fmean(at)
        mean.append((step, middle))
        if len(at) > 1:
            sd = statistics.stdev(at)
            band.append((step, middle - sd, middle + sd))
    return mean, band


def parallel_view(
    comparison: Comparison, groups: Sequence[Group], group_styles: Sequence[int]
) -> str:
    """The keys that differ, the seed among them, against the outcome; runs that were measured on
    other rows are left out."""
    rows = {id(row.group): row for row in comparison.rows}
    runs = [
        (style, group, run, value)
        for style, group in zip(group_styles, groups, strict=True)
        for run, (_, value) in zip(group.runs, rows[id(group)].points, strict=True)
        if math.isfinite(value) and rows[id(group)].is_comparable
    ]
    keys = list(groups[0].keys) if groups else []
    short = short_names(keys)
    axes = [
        Axis(short[key], _typed([group.keys[key] for _, group, _, _ in runs])) for key in keys[:6]
    ]
    seeds = [run.seed for _, _, run, _ in runs]
    if len(set(seeds)) > 1 and None not in seeds:
        axes.append(Axis("seed", [seed for seed in seeds if seed is not None]))
    if len(runs) < 2 or not axes:
        return ""
    values = [value for *_, value in runs]
    axes.append(Axis(words(comparison.metric.name), values))
    better = min if comparison.metric.lower_is_better else max
    best = values.index(better(values))
    styles = [style for style, *_ in runs] if len(groups) > 1 else list(range(len(runs)))
    return svg.parallel("Settings against outcome", axes, styles, best=best)


def _typed(values: Sequence[str]) -> list[float | str]:
    try:
        numbers: list[float | str] = [float(value) for value in values]
    except ValueError:
        return list(values)
    return numbers if all(math.isfinite(float(value)) for value in values) else list(values)


def _few(steps: Sequence[int]) -> list[int]:
    """Every n-th step, so that a band has no more points than a line, and the last."""
    stride = -(-len(steps) // (svg.MAX_POINTS - 1)) or 1
    chosen = list(steps[::stride])
    return chosen if not steps or chosen[-1] == steps[-1] else [*chosen, steps[-1]]


def _panel(title: str, subtitle: str, lines: list[Line], **marks: Any) -> Panel:
    named = [line for line in lines if line.style != svg.OTHER]
    legend = [(svg.sample(line.style), line.name) for line in named] if len(lines) > 1 else []
    if len(named) < len(lines):
        others = f"{len(lines) - len(named)} other groups, of lower rank"
        legend.append((svg.sample(svg.OTHER), others))
    return Panel(title, subtitle, svg.line_chart(title, lines, **marks), legend)
