"""What a suite returns: numbers with what was measured, on which data, and how."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import vlkd_cli

if TYPE_CHECKING:
    from vlkd_cli.evaluation.shown import Arrays, Shown


class DataIdentity(NamedTuple):
    """What a result records about its data."""

    dataset: str
    split: str
    hashes: dict[str, str]
    """Digests of row order, class order and files."""
    num_classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """One suite on one data set; suites make it with `Suite.result`, which fills in what is the
    same for all of them.

    Metrics are fractions from 0 to 1 unless their name indicates otherwise (`median_rank`,
    `mae_years`).
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
    model: dict[str, object]
    """Run, checkpoint file, step, and whether its weights are averaged; nulls where the towers are
    as their builders gave them."""
    towers: dict[str, dict[str, str]]
    """By modality: the tower's name and a digest of its weights, settings and tokenizer."""
    precision: str
    hashes: dict[str, str]
    """Digests of row order, class order and files."""
    data: dict[str, object]
    """The source of the data, as given in the recipe or the command."""
    settings: dict[str, object]
    """Every key of the suite that can change a number, and what was decided while it ran."""
    libraries: dict[str, str]
    """Versions of what computed it."""
    details: dict[str, Any] = field(default_factory=dict)
    """Per-class tables, confusion pairs and the like; not in the summary table."""
    version: str = vlkd_cli.__version__
    key: str = ""
    """What was measured, by content: see `cell_key`."""
    seconds: float | None = field(default=None, compare=False)
    """How long the suite ran."""
    device: str = field(default="", compare=False)
    items: Arrays | None = field(default=None, repr=False, compare=False)
    """The answer to each row, written next to the JSON as `KEY.items.npz`."""
    shown: Shown | None = field(default=None, repr=False, compare=False)
    """What the report page shows, written as `KEY.map.npz`."""

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for json.dump; a number that does not exist (a correlation with a
        constant) is null."""
        numbers = asdict(replace(self, items=None, shown=None))
        del numbers["items"], numbers["shown"]
        plain: dict[str, object] = _plain(numbers)
        return plain

    @property
    def file_stem(self) -> str:
        """`NAME-DATASET-SPLIT-PROTOCOL-KEY`, what its files are called. The key changes with the
        weights, the data, the precision and every setting, so that a file is replaced by the same
        measurement only."""
        parts = (self.name, self.dataset, self.split, self.protocol)
        return "-".join([*(_file_part(part) for part in parts if part), self.key])


def cell_key(
    *,
    suite: str,
    version: int,
    keys: Mapping[str, object],
    hashes: Mapping[str, str],
    weights: Mapping[str, str],
    precision: str,
) -> str:
    """12 hex digits that name a measurement by all that can change its numbers, known before it
    runs. Names, paths, batch size, device and versions are not among it.

    Args:
        suite, version: which suite, and the version of its numbers.
        keys: its keys with their defaults, without those that name sources of data.
        hashes: digests of rows, classes and texts as encoded.
        weights: digest of each tower that is used, by modality.
    """
    what = {
        "format": 1,
        "suite": suite,
        "version": version,
        "keys": keys,
        "hashes": hashes,
        "weights": weights,
        "precision": precision,
    }
    text = json.dumps(_plain(what), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value, default=float), parse_constant=lambda _: None)


def _file_part(part: str) -> str:
    safe = "".join(letter if letter.isalnum() or letter in "._@" else "_" for letter in part)
    return safe[:60]
