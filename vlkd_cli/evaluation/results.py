"""What a suite returns: numbers that carry where they come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import vlkd_cli

if TYPE_CHECKING:
    from vlkd_cli.evaluation.shown import Arrays, Shown


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
    items: Arrays | None = field(default=None, repr=False, compare=False)
    """The answer to each row, written next to the JSON as `KEY.items.npz`."""
    shown: Shown | None = field(default=None, repr=False, compare=False)
    """What the report page shows, written as `KEY.map.npz`."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dump; a number that does not exist (a correlation with a
        constant) is null."""
        numbers = asdict(replace(self, items=None, shown=None))
        del numbers["items"], numbers["shown"]
        plain: dict[str, Any] = json.loads(
            json.dumps(numbers, default=float), parse_constant=lambda _: None
        )
        return plain
