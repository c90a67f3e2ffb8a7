"""The page of one run: what each section shows."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from vlkd_cli.numerics.statistics import wilson
from vlkd_cli.reports.comparison import optimism
from vlkd_cli.reports.html import charts, svg
from vlkd_cli.reports.html.pictures import Gallery, Shown, read_shown
from vlkd_cli.reports.html.svg import Points, number
from vlkd_cli.reports.records import Metric, RunRecord, StoredResult, flat_recipe

MOST_ROWS = 60
MOST_BROKEN = 50


class Tile(NamedTuple):
    """One figure at the top of the page."""

    name: str
    value: str
    detail: str
    kind: str = ""


class Note(NamedTuple):
    """A line under the tiles; `kind` is "", "good" or "warn"."""

    text: str
    kind: str = ""


def context_of_run(run: RunRecord) -> dict[str, object]:
    """What `run.html` is rendered with."""
    gallery = Gallery()
    shown = _shown(run)
    during = [m for m in run.evaluations if any(r.step is not None for r in _files(run, m))]
    if not run.results:
        during = list(run.evaluations)
    afterwards = [metric for metric in run.evaluations if metric not in during]
    return {
        "title": run.name,
        "subtitle": subtitle(run),
        "tiles": tiles(run),
        "notes": notes(run),
        "panels": charts.result_panels(run),
        "during": [_result_row(run, metric) for metric in during][:MOST_ROWS],
        "afterwards": [_result_row(run, metric) for metric in afterwards][:MOST_ROWS],
        "left_out": max(len(during) - MOST_ROWS, 0) + max(len(afterwards) - MOST_ROWS, 0),
        "retrieval": [_retrieval(m, s, gallery) for m, s in shown if "misses" in s.lists],
        "confusions": [_confusions(m, s, gallery) for m, s in shown if s.lists.get("confusions")],
        "maps": [found for m, s in shown if (found := _map(m, s))],
        "training": charts.training_panels(run.training),
        "data": data_rows(run.recipe),
        "broken": run.skipped[:MOST_BROKEN],
        "num_broken": len(run.skipped),
        "reasons": Counter(reason for _, reason in run.skipped).most_common(5),
        **ending(run),
        "pictures": gallery,
    }


def ending(run: RunRecord) -> dict[str, object]:
    """The last section: command, recipe and versions."""
    command = run.command
    if command and command[0].endswith(".py"):
        # `python -m vlkd_cli` names a file of the package.
        command[0] = "vlkd"
    settings = [b for a, b in pairwise(command) if a == "--set"]
    packages = run.versions.get("packages")
    facts = {key: run.versions.get(key) for key in ("vlkd", "python", "platform")}
    git = run.versions.get("git")
    if isinstance(git, dict) and git.get("commit"):
        facts["commit"] = str(git["commit"])[:12] + (", changed" if git.get("changed") else "")
    facts |= packages if isinstance(packages, dict) else {}
    path = run.path / "recipe.yaml"
    return {
        "command": " ".join(map(shlex.quote, command)),
        "settings": settings,
        "recipe": path.read_text(encoding="utf-8", errors="replace")[:60_000],
        "versions": [(name, version) for name, version in facts.items() if version],
    }


def subtitle(run: RunRecord) -> str:
    """Towers, distillers and version in one line."""
    parts = []
    for name, tower in run.section("towers").items():
        tower = tower if isinstance(tower, Mapping) else {}
        what = " ".join(str(tower[k]) for k in ("builder", "model", "follows") if tower.get(k))
        frozen = " (frozen)" if tower.get("train") == "none" else ""
        parts.append(f"{name}: {what}{frozen}")
    listed = run.recipe.get("distillers")
    distillers = (
        [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    )
    parts.append(" + ".join(str(one["name"]) for one in distillers if one.get("name")))
    if run.versions.get("vlkd"):
        parts.append(f"vlkd {run.versions['vlkd']}")
    return " \N{MIDDLE DOT} ".join(part for part in parts if part)


def tiles(run: RunRecord) -> list[Tile]:
    """Whether it worked, in six figures."""
    found = []
    metric = run.watched or next(iter(run.primary_metrics()), None)
    if metric is not None:
        found += _result_tiles(run, metric)
    loss = [(s, v) for s, v in run.training.get("loss", []) if math.isfinite(v)]
    if loss:
        found.append(Tile("loss", number(loss[-1][1]), f"from {number(loss[0][1])}"))
    total = run.state.total_steps if run.state else None
    epochs = run.training.get("epoch")
    detail = f"{epochs[-1][1]:.3g} epochs" if epochs else ""
    if total and run.last_step < total:
        detail = f"of {total:,}" + (f", {detail}" if detail else "")
    found.append(Tile("steps", f"{run.last_step:,}", detail))
    rate = [v for _, v in run.training.get("samples_per_second", []) if math.isfinite(v)]
    if rate:
        found.append(Tile("samples/s", number(round(statistics.median(rate), 1)), "median"))
    kind = "warn" if run.skipped else ""
    found.append(Tile("broken files", f"{len(run.skipped):,}", "of the training data", kind))
    return found


def _result_tiles(run: RunRecord, metric: Metric) -> list[Tile]:
    best, last, chance = run.best(metric), run.last(metric), run.chance(metric)
    found = []
    if best is not None:
        details = [f"best, at step {best[0]:,}"]
        if chance is not None:
            details.append(f"chance {chance:.3g}")
        result = run.result_of(metric, best[0])
        n = (result.content.get("num_items") or 0) if result else 0
        if metric.name == "top1" and n:
            low, high = wilson(round(best[1] * n), n)
            details.append(f"95 % over {n:,} items: {low:.3f} to {high:.3f}")
        name = f"{metric.suite} {metric.dataset} {charts.words(metric.name)}"
        found.append(Tile(name, number(best[1]), "; ".join(details), "first"))
    if last is not None and best is not None and last[0] != best[0]:
        found.append(Tile("at the end", number(last[1]), f"step {last[0]:,}"))
    return found


def notes(run: RunRecord) -> list[Note]:
    """What a reader has to know before the figures."""
    found = []
    state = run.state
    if state is not None and state.state == "failed":
        found.append(Note(f"Failed: {state.error or 'no error was recorded'}", "warn"))
    elif state is not None and state.state == "killed":
        found.append(Note("Killed: the process ended without a final record.", "warn"))
    elif state is not None and state.state == "stopped":
        found.append(Note(f"Stopped at step {run.last_step:,}; --resume continues it.", "warn"))
    elif state is not None and state.state == "running":
        found.append(Note("Still running: this page shows what is known so far."))
    if not run.evaluations:
        found.append(Note("Nothing was evaluated: this page has no quality metrics."))
    skipped = run.training.get("skipped_steps")
    if skipped and skipped[-1][1] > 0:
        times = f"{skipped[-1][1]:,.0f} steps were skipped: loss or gradient was not finite."
        found.append(Note(times, "warn"))
    if run.unreadable:
        found.append(Note(f"Cannot be read: {', '.join(run.unreadable[:5])}.", "warn"))
    metric = run.watched or next(iter(run.primary_metrics()), None)
    if metric is not None:
        found += _quality_notes(run, metric)
    return found


def _quality_notes(run: RunRecord, metric: Metric) -> list[Note]:
    found = []
    best, chance, series = run.best(metric), run.chance(metric), run.evaluations[metric]
    if best is not None and chance is not None:
        is_at_chance = best[1] >= chance if metric.lower_is_better else best[1] <= 1.2 * chance
        if is_at_chance:
            found.append(Note(f"{metric} is not above chance ({number(chance)}).", "warn"))
    if len(series) >= 3 and best is not None and best[0] == series[-1][0]:
        found.append(Note("Still improving at the end: the last evaluation is the best one."))
    if len(series) > 1:
        found += [Note(f"{text[0].upper()}{text[1:]}.", "warn") for text in optimism([run], metric)]
    return found


def _files(run: RunRecord, metric: Metric) -> list[StoredResult]:
    return [r for r in run.results if r.key == metric[:2] and metric.name in r.content["metrics"]]


def _result_row(run: RunRecord, metric: Metric) -> dict[str, object]:
    best, last, chance = run.best(metric), run.last(metric), run.chance(metric)
    result = run.result_of(metric)
    is_fraction = best is not None and 0 <= best[1] <= 1 and not metric.lower_is_better
    return {
        "suite": metric.suite,
        "data": metric.dataset,
        "metric": charts.words(metric.name),
        "best": "" if best is None else number(best[1]),
        "step": "" if best is None else f"{best[0]:,}",
        "last": "" if last is None else number(last[1]),
        "chance": "" if chance is None else number(chance),
        "bar": svg.bar(best[1], chance) if is_fraction and best else "",
        "n": f"{result.content.get('num_items') or 0:,}" if result else "",
        "primary": metric in run.primary_metrics(),
    }


def _shown(run: RunRecord) -> list[tuple[Metric, Shown]]:
    """The lists of each suite and data set at the best step of what is watched, else the last."""
    found = []
    for metric in run.primary_metrics()[:6]:
        best = run.best(run.watched or metric)
        result = run.result_of(metric, best[0] if best else None)
        shown = read_shown(result.sidecar("map")) if result is not None else None
        if shown is not None:
            found.append((metric, shown))
    return found


def _retrieval(metric: Metric, shown: Shown, gallery: Gallery) -> dict[str, object]:
    def row(entry: Mapping[str, Any]) -> dict[str, object]:
        own = entry["image"]
        found = [
            {
                "picture": gallery.add(shown.pictures.get(index)),
                "text": f"{place}. {cosine:.2f}",
                "own": index == own,
            }
            for place, (index, cosine) in enumerate(entry["found"], start=1)
        ]
        return {
            "caption": entry["caption"],
            "found": found,
            "own": None
            if any(item["own"] for item in found)
            else {
                "picture": gallery.add(shown.pictures.get(own)),
                "text": f"rank {entry['rank']}",
                "own": False,
            },
        }

    return {
        "name": f"{metric.suite} {metric.dataset}",
        "misses": [row(entry) for entry in shown.lists["misses"]],
        "hits": [row(entry) for entry in shown.lists["hits"]],
    }


def _confusions(metric: Metric, shown: Shown, gallery: Gallery) -> dict[str, object]:
    rows = []
    for entry in shown.lists["confusions"]:
        pictures = [
            {
                "picture": gallery.add(shown.pictures.get(n)),
                "text": " / ".join(f"{round(cosine, 2) + 0.0:.2f}" for cosine in (taken, right)),
                "own": False,
            }
            for n, taken, right in entry["found"]
        ]
        rows.append({**entry, "pictures": pictures})
    return {"name": f"{metric.suite} {metric.dataset}", "rows": rows}


def _map(metric: Metric, shown: Shown) -> dict[str, object] | None:
    if not shown.points:
        return None
    captions = shown.lists.get("map_captions", [])
    if len(shown.points) == 2:
        clouds = [
            Points("images", shown.points[0], 0, captions),
            Points("their first captions", shown.points[1], 1, captions),
        ]
    else:
        clouds = _by_class(shown.points[0], captions)
    title = f"Embedding map of {metric.suite} {metric.dataset}"
    return {
        "name": f"{metric.suite} {metric.dataset}",
        "chart": svg.scatter(title, clouds, joined=len(shown.points) == 2),
        "legend": [(svg.sample(c.style, marker_only=True), c.name) for c in clouds],
        "variance": f"{100 * shown.variance:.0f} %",
        "paired": len(shown.points) == 2,
    }


def _by_class(points: list[tuple[float, float]], classes: list[str]) -> list[Points]:
    """A color for each class where there are colors enough."""
    names = list(dict.fromkeys(classes))
    if len(names) > svg.NUM_STYLES:
        return [Points("images", points, 0, classes)]
    clouds = []
    for style, name in enumerate(sorted(names)):
        own = [point for point, label in zip(points, classes, strict=False) if label == name]
        clouds.append(Points(name, own, style, [name] * len(own)))
    return clouds


def data_rows(recipe: Mapping[str, object]) -> list[tuple[str, str]]:
    """The keys of `data:`."""
    data = recipe.get("data")
    return list(flat_recipe(data).items()) if isinstance(data, Mapping) else []
