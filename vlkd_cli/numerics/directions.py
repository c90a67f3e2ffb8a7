"""Which metrics are better the smaller they are, read from their names."""

from __future__ import annotations

import re

_LOWER_IS_BETTER = {
    *("rank", "loss", "mae", "mse", "error", "perplexity"),
    *("uniformity", "alignment", "gap", "spread"),
}
"""Words of a metric's name: ranks, losses, errors and distances."""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one."""
    words = metric.lower().replace("effective_rank", "")  # a number of dimensions
    return not _LOWER_IS_BETTER.isdisjoint(re.split(r"[^a-z]+", words))
