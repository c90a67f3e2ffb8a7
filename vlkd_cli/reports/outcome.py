"""What a run came to, in one line."""

from __future__ import annotations

from vlkd_cli.reports.records import Metric, RunRecord


def outcome_line(record: RunRecord) -> str | None:
    """`best retrieval.val.mean_recall 0.346 at step 50 (checkpoints/best.pt); at the end 0.329`.

    The metric is what `train.best` names, else the primary metric of the first suite; a best step
    without a checkpoint of its own names none. None where nothing was evaluated.
    """
    watched = record.watched
    primary = record.primary_metrics()
    metric = watched or (primary[0] if primary else None)
    if metric is None:
        return None
    best, last = _best(record, metric, is_watched=watched is not None), record.last(metric)
    if best is None or last is None:
        return None
    file = "checkpoints/best.pt"
    has_file = watched is not None and (record.path / file).is_file()
    return (
        f"best {metric} {_number(best[1])} at step {best[0]}{f' ({file})' if has_file else ''};"
        f" at the end {_number(last[1])}"
    )


def _best(record: RunRecord, metric: Metric, *, is_watched: bool) -> tuple[int, float] | None:
    """Step and value; of the watched metric those of `best.pt`, which `min_delta` decides."""
    state = record.state
    if is_watched and state is not None and state.best_step is not None and state.best is not None:
        return state.best_step, state.best
    return record.best(metric)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
