"""What a suite returns: numbers that say what was measured, on which data, and how."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import vlkd_cli

if TYPE_CHECKING:
    from vlkd_cli.evaluation.shown import Arrays, Shown


class DataIdentity(NamedTuple):
    """What a result says about its data."""

    dataset: str
    split: str
    hashes: dict[str, str]
    """Digests of row order, class order and files."""
    num_classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One suite on one data set; suites make it with `Suite.result`, which fills in what is the
    same for all of them.

    Metrics are fractions from 0 to 1 unless their name says otherwise (`median_rank`, `mae_years`).
    """

    name: str
    """What the `evals:` entry is called; metrics are `NAME.DATASET.METRIC`."""
    suite: str
    dataset: str
    split: str
    protocol: str
    metrics: dict[str, float]
    primary_metric: str
    """Which metric a one-line summary shows."""
    chance: dict[str, float]
    """What a random encoder would reach, for the metrics where that is known."""
    num_items: int
    num_skipped: int = 0
    num_classes: int | None
    """Of data with class labels."""
    model: dict[str, Any]
    """Run, checkpoint file, step, and whether its weights are averaged; nulls where the towers are
    as their builders gave them."""
    towers: dict[str, dict[str, str]]
    """By modality: the tower's name and a digest of its weights, settings and tokenizer."""
    precision: str
    hashes: dict[str, str]
    """Digests of row order, class order and files."""
    data: dict[str, Any]
    """Where the data was read from, as the recipe or the command said it."""
    settings: dict[str, Any]
    """Every key of the suite that can change a number, and what was decided while it ran."""
    libraries: dict[str, str]
    """Versions of what computed it."""
    details: dict[str, Any] = field(default_factory=dict)
    """Per-class tables, confusion pairs and the like; not in the summary table."""
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
        plain: dict[str, Any] = _plain(numbers)
        return plain

    @property
    def key(self) -> str:
        """`NAME-DATASET-SPLIT-PROTOCOL-DIGEST`, what its files are called. The digest changes with
        the weights, the data, the precision and every setting, so that a file is replaced by the
        same measurement only."""
        what = _plain([self.suite, self.towers, self.precision, self.hashes, self.settings])
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        parts = (self.name, self.dataset, self.split, self.protocol)
        return "-".join([*(_file_part(part) for part in parts if part), digest[:8]])


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=float), parse_constant=lambda _: None)


def _file_part(part: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "._@" else "_" for letter in part)
    return kept[:60]
