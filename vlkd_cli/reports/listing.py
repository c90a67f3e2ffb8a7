"""A run in one line, for `vlkd runs`."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from vlkd_cli.reports.records import RunRecord


def describe(run: RunRecord) -> dict[str, object]:
    """Name, recipe, seed, state, step, watched metric with its best and last value, end.

    The watched metric is what `train.best` names, else the first primary metric. A run that ended
    before vlkd wrote `state.json` has no state.
    """
    metric = run.watched or next(iter(run.primary_metrics()), None)
    best = run.best(metric) if metric is not None else None
    last = run.last(metric) if metric is not None else None
    total = run.state.total_steps if run.state else None
    return {
        "run": run.name,
        "recipe": run.recipe_name,
        "seed": run.seed,
        "state": run.state.state if run.state else None,
        "step": f"{run.last_step}/{total}" if total else str(run.last_step),
        "metric": None if metric is None else str(metric),
        "best": None if best is None else round(best[1], 4),
        "best step": None if best is None else best[0],
        "last": round(last[1], 4) if last is not None and math.isfinite(last[1]) else None,
        "ended": _ended(run),
    }


def _ended(run: RunRecord) -> str | None:
    """When the run ended, in local time; a running one has not."""
    if run.state is not None:
        if run.state.state == "running":
            return None
        try:
            moment = datetime.fromisoformat(run.state.updated)
        except ValueError:
            return None
    else:
        record = run.path / "metrics.csv"
        if not record.is_file():
            return None
        moment = datetime.fromtimestamp(record.stat().st_mtime, UTC)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
