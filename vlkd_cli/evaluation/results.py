"""What a suite returns: numbers that carry where they come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import vlkd_cli


@dataclass(frozen=True)
class Result:
    """One suite on one data set. Metrics are shares from 0 to 1 unless their name says otherwise
    (`median_rank`, `mae_years`)."""

    suite: str
    dataset: str
    split: str
    protocol: str
    metrics: dict[str, float]
    headline: str
    """Which metric a one-line summary shows."""
    chance: dict[str, float] = field(default_factory=dict)
    """What a random encoder would reach, for the metrics where that is known."""
    num_items: int = 0
    num_skipped: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    """Digests of row order, class order and files."""
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """Per-class tables, confusion pairs and the like; kept out of the summary table."""
    version: str = vlkd_cli.__version__

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dump; a number that does not exist (a correlation with a
        constant) is null."""
        plain: dict[str, Any] = json.loads(
            json.dumps(asdict(self), default=float), parse_constant=lambda _: None
        )
        return plain
