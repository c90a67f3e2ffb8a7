"""Runs side by side: groups that differ only in their seed, spread, and differences to a baseline.

Without torch; numpy and scipy are imported by the statistics that need them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import UserError
from vlkd_cli.numerics.statistics import (
    Difference,
    Summary,
    bootstrap_difference,
    holm,
    mcnemar,
    paired_difference,
    summarize,
)
from vlkd_cli.recipe.overrides import short_names
from vlkd_cli.reports.items import answers_of, is_accuracy
from vlkd_cli.reports.records import Metric, RunRecord, flat_recipe

At = Literal["best", "last"]
MOST_KEYS_IN_A_NAME = 4
LONGEST_VALUE = 40
NUMBERS = "no one two three four five six seven eight nine ten eleven twelve".split()


@dataclass
class Group:
    """Runs of one recipe with different seeds."""

    name: str
    runs: list[RunRecord]
    keys: dict[str, str]
    """The keys in which the groups differ, with this group's values."""


@dataclass
class Row:
    """A group's line of the table."""

    group: Group
    points: list[tuple[int, float]]
    """Step and value of each run."""
    summary: Summary
    rows: str = ""
    difference: Difference | None = None
    over: Literal["", "seeds", "items"] = ""
    left_out: list[str] = field(default_factory=list)
    """Runs without a partner of the same seed."""
    p: float | None = None
    holm_p: float | None = None

    @property
    def is_comparable(self) -> bool:
        return self.rows != "differ"


@dataclass
class Comparison:
    """The table and the notes that belong to it."""

    metric: Metric
    at: At
    chance: float | None
    baseline: Group
    rows: list[Row]
    notes: list[str]


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Groups in the order of their first runs, named by the keys that differ between them."""
    together: dict[frozenset[tuple[str, str]], list[RunRecord]] = {}
    for run in runs:
        keys = flat_recipe(run.recipe, of_group=True)
        together.setdefault(frozenset(keys.items()), []).append(run)
    flat = [flat_recipe(members[0].recipe, of_group=True) for members in together.values()]
    every = dict.fromkeys(key for keys in flat for key in keys)
    varying = [key for key in every if len({keys.get(key) for keys in flat}) > 1]
    short = short_names(varying)
    groups = []
    for keys, members in zip(flat, together.values(), strict=True):
        own = {key: keys.get(key, "-") for key in varying}
        if not varying:
            name = members[0].recipe_name
        elif len(varying) <= MOST_KEYS_IN_A_NAME:
            name = " ".join(f"{short[key]}={_brief(value)}" for key, value in own.items())
        else:
            name = members[0].name
        groups.append(Group(name, members, own))
    if len({group.name for group in groups}) < len(groups):
        return [replace(group, name=group.runs[0].name) for group in groups]
    return groups


def _brief(value: str) -> str:
    """A value in a name, without the middle of a long one."""
    return value if len(value) <= LONGEST_VALUE else f"{value[:20]}...{value[-17:]}"


def compare(
    runs: Sequence[RunRecord],
    *,
    metric: str | None = None,
    baseline: str | None = None,
    at: At | None = None,
) -> Comparison:
    """The comparison of runs in one metric.

    Args:
        runs: at least one.
        metric: SUITE.METRIC or SUITE.DATASET.METRIC; by default what `train.best` names, else the
            first primary metric.
        baseline: a group's name or a run's; by default the first group.
        at: the best or the last evaluation of each run; by default the best where `train.best`
            names the metric.

    Raises:
        UserError: no run has the metric, or there is no such baseline.
    """
    chosen = _chosen_metric(runs, metric)
    wanted = [run for run in runs if chosen in run.evaluations]
    notes = [f"{run.name}: no {chosen}; left out" for run in runs if run not in wanted]
    groups = group_runs(wanted)
    if at is None:
        at = "best" if all(run.watched == chosen for run in wanted) else "last"
    base = _baseline(groups, baseline)
    rows = [_row(group, chosen, at) for group in groups]
    _mark_other_rows(rows, base)
    reference = next(row for row in rows if row.group is base)
    for row in rows:
        if row is not reference and row.is_comparable:
            _compare(row, reference, chosen)
    tested = [row for row in rows if row.p is not None]
    for row, adjusted in zip(tested, holm([row.p or 0.0 for row in tested]), strict=True):
        row.holm_p = adjusted
    notes += _notes(rows, chosen, at)
    chance = next((c for run in wanted if (c := run.chance(chosen)) is not None), None)
    return Comparison(chosen, at, chance, base, rows, notes)


def _chosen_metric(runs: Sequence[RunRecord], words: str | None) -> Metric:
    known = list(dict.fromkeys(metric for run in runs for metric in run.evaluations))
    if not known:
        names = ", ".join(run.name for run in runs[:3])
        raise UserError(
            f"{names}: no evaluation yet. Add `evals:` to the recipe, or run `vlkd eval RUN --suite"
            " NAME`."
        )
    if words is not None:
        for run in runs:
            if (found := run.find_metric(words)) is not None:
                return found
        short = list(dict.fromkeys(f"{m.suite}.{m.name}" for m in known))
        raise UserError(
            f"--metric {words}: none of the runs has it."
            f"{did_you_mean(words, [*short, *map(str, known)])} There are:"
            f" {', '.join(short)}."
        )
    watched = next((run.watched for run in runs if run.watched is not None), None)
    return watched or next(metric for run in runs for metric in run.primary_metrics())


def _baseline(groups: Sequence[Group], name: str | None) -> Group:
    if name is None:
        return groups[0]
    wanted = Path(name).name or name
    for group in groups:
        if name == group.name or wanted in {run.name for run in group.runs}:
            return group
    # A part of the name is enough where it means one group, and 3e-3 is 0.003.
    found = [group for group in groups if _parts(name) <= _parts(_full_name(group))]
    if len(found) == 1:
        return found[0]
    names = [group.name for group in groups]
    raise UserError(
        f"--baseline {name}: no such group or run.{did_you_mean(name, names)} Groups:"
        f" {', '.join(names)}."
    )


def _full_name(group: Group) -> str:
    """Its name, and its keys with values of any length."""
    short = short_names(list(group.keys))
    return " ".join([group.name, *(f"{short[key]}={value}" for key, value in group.keys.items())])


def _parts(name: str) -> set[str]:
    """The `key=value` parts of a group's name, numbers in one spelling."""
    found = set()
    for part in name.split():
        key, equals, value = part.partition("=")
        with contextlib.suppress(ValueError):
            value = repr(float(value))
        found.add(f"{key}{equals}{value}")
    return found


def _row(group: Group, metric: Metric, at: At) -> Row:
    points = []
    for run in group.runs:
        point = run.best(metric) if at == "best" else None
        points.append(point or run.last(metric) or (0, float("nan")))
    hashes = {
        result.rows
        for run, (step, _) in zip(group.runs, points, strict=True)
        if (result := run.result_of(metric, step)) is not None and result.rows
    }
    rows = hashes.pop() if len(hashes) == 1 else ("differ" if hashes else "")
    return Row(group, points, summarize([value for _, value in points]), rows)


def _mark_other_rows(rows: Sequence[Row], baseline: Group) -> None:
    """Groups that were evaluated on other rows than the baseline are not compared."""
    reference = next(row for row in rows if row.group is baseline)
    for row in rows:
        if row is not reference and row.rows and row.rows != reference.rows and reference.rows:
            row.rows = "differ"


def _compare(row: Row, reference: Row, metric: Metric) -> None:
    ours, theirs = _by_seed(row), _by_seed(reference)
    seeds = [seed for seed in ours if seed in theirs and seed is not None]
    row.left_out = [
        run.name
        for side, other in ((row, theirs), (reference, ours))
        for run in side.group.runs
        if run.seed not in other
    ]
    if len(seeds) >= 2:
        row.difference = paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
        row.over = "seeds"
        row.p = row.difference.p if row.difference else None
    elif len(row.points) == len(reference.points) == 1:
        row.left_out = []
        _compare_items(row, reference, metric)


def _compare_items(row: Row, reference: Row, metric: Metric) -> None:
    sides = []
    for side in (row, reference):
        result = side.group.runs[0].result_of(metric, side.points[0][0])
        sides.append(None if result is None else answers_of(result, metric.name))
    ours, theirs = sides
    if ours is None or theirs is None or len(ours.values) != len(theirs.values):
        return
    row.difference = bootstrap_difference(
        (ours.values - theirs.values).tolist(), ours.groups.tolist()
    )
    row.over = "items"
    if is_accuracy(metric.name):
        better, worse = ours.values > theirs.values, ours.values < theirs.values
        row.p = mcnemar(int(better.sum()), int(worse.sum()))


def _by_seed(row: Row) -> dict[int | None, float]:
    return {run.seed: value for run, (_, value) in zip(row.group.runs, row.points, strict=True)}


def _notes(rows: Sequence[Row], metric: Metric, at: At) -> list[str]:
    notes = []
    if at == "best":
        notes += optimism([run for row in rows for run in row.group.runs], metric)
    for row in rows:
        name, n = row.group.name, row.summary.n
        if n == 1:
            notes.append(f"{name}: one seed: no spread")
        elif n == 2:
            notes.append(f"{name}: n = 2: wide by construction")
        if len({run.seed for run in row.group.runs}) < n:
            notes.append(f"{name}: several runs have the same seed; they are not independent")
        if not row.is_comparable:
            notes.append(f"{name}: rows differ: not ranked")
        if row.left_out:
            notes.append(
                f"{name}: left out, without a partner of the same seed: {', '.join(row.left_out)}"
            )
        for run in row.group.runs:
            if run.state is not None and run.state.state != "finished":
                where = f" at step {run.state.step}" if run.state.step else ""
                notes.append(f"{run.name}: {run.state.state}{where}")
    if any(row.over == "items" for row in rows):
        notes.append("differences on the same items: other items, not other seeds")
    if any(_draws_images(run, metric) for row in rows for run in row.group.runs):
        notes.append(f"{metric.suite}: SD over samples of images, not over training seeds")
    compared = sum(row.difference is not None for row in rows)
    if compared >= 3:
        notes.append(_false_alarms(compared))
    return list(dict.fromkeys(notes))


def optimism(runs: Sequence[RunRecord], metric: Metric) -> list[str]:
    """The note where the best step is reported on the data it was chosen on."""
    notes = []
    for run in runs:
        count = len(run.evaluations.get(metric, ()))
        result = run.result_of(metric)
        split = str(result.content.get("split") or "") if result else ""
        if split in ("", "all"):  # data without parts is known by its name
            split = metric.dataset
        watched = run.watched
        own = run.result_of(watched) if watched is not None else None
        same = result is not None and own is not None and own.rows == result.rows
        if watched is not None and (watched == metric or (same and own is not None and own.rows)):
            notes.append(
                f"best step chosen on {split}, which is also reported: this value is optimistic;"
                " report another split"
            )
        elif count > 1:
            notes.append(f"best of {count} chosen on {split}: optimistic")
    return list(dict.fromkeys(notes))


def _draws_images(run: RunRecord, metric: Metric) -> bool:
    result = run.result_of(metric)
    if result is None or metric.suite not in ("few_shot", "elevater"):
        return False
    seeds = (result.content.get("settings") or {}).get("seeds")
    return isinstance(seeds, list) and len(seeds) > 1


def _false_alarms(comparisons: int) -> str:
    every = round(1 / (1 - 0.95**comparisons))
    often = f"one false alarm in {NUMBERS[every]} such tables" if every > 1 else "expect one"
    return f"{comparisons} comparisons at 95 %: {often}"
