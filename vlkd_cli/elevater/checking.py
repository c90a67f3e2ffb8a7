"""What is wrong with prediction files, one line per problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.readers.elevater_sets import SetFacts
from vlkd_cli.elevater.predictions import (
    KEYS,
    Field,
    Header,
    Provenance,
    are_numbers,
    read_predictions,
    read_provenance,
)
from vlkd_cli.elevater.score import score
from vlkd_cli.errors import DataError

ROW_SUM_TOLERANCE = 1e-3
FEW_SHOT_SEEDS = (0, 1, 2)
_SHOWN = 3


class CheckedFile(NamedTuple):
    """A prediction file that was read through once."""

    path: Path
    header: Header
    provenance: Provenance
    """Without the labels; empty where nothing is known."""
    scores: tuple[float, ...]
    """One per seed; empty where the labels are not known."""

    @property
    def dataset(self) -> str:
        return self.header.dataset_name

    @property
    def seeds(self) -> list[int]:
        return self.header.rnd_seeds


@dataclass
class _Problems:
    """Lines about one file; of many alike, the first few and how many more."""

    path: Path
    lines: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, text: str, kind: str | None = None) -> None:
        self.counts[kind or text] = self.counts.get(kind or text, 0) + 1
        if self.counts[kind or text] <= _SHOWN:
            self.lines.append(f"{self.path}: {text}")

    def all(self) -> list[str]:
        more = [
            f"{self.path}: {kind}: {count - _SHOWN} more."
            for kind, count in self.counts.items()
            if count > _SHOWN
        ]
        return self.lines + more


def check_file(
    path: Path, sets: Mapping[str, SetFacts], *, trust_order: bool = False
) -> tuple[CheckedFile | None, list[str]]:
    """Read one file through: keys, name, shape, numbers, order. Returns None where its fields are
    too wrong to continue."""
    problems = _Problems(path)
    fields: dict[str, object] = {}
    header: Header | None = None
    tables: list[NDArray[np.float64]] = []
    counts: list[int] = []
    try:
        provenance = read_provenance(path) or Provenance()
        # Stored only here: sixty files of labels would take memory for nothing.
        labels = provenance.pop("labels", [])
        for event in read_predictions(path):
            if isinstance(event, Field):
                if counts:
                    problems.add(
                        f"key '{event.key}' appears after the predictions. Evaluate this data set"
                        " again."
                    )
                fields[event.key] = event.value
                continue
            if header is None and (header := _header(fields, problems)) is None:
                return None, problems.all()
            facts = sets.get(header.dataset_name)
            while event.seed >= len(counts):
                counts.append(0)
                tables.append(np.full(_table_shape(facts, len(labels)), np.nan))
            row = _probabilities(event.values, counts[-1], facts, problems)
            if row is not None and counts[-1] < len(tables[-1]):
                tables[-1][counts[-1]] = row
            counts[-1] += 1
    except DataError as error:
        return None, [str(error)]
    if header is None:
        problems.add("it has no predictions. Evaluate this data set again.")
        return None, problems.all()
    _check_whole(header, counts, sets, problems)
    facts = sets.get(header.dataset_name)
    scores: tuple[float, ...] = ()
    if facts is not None:
        _check_order(facts, provenance, trust_order, problems)
        if provenance and any(count != len(labels) for count in counts):
            problems.add(
                "its rows and the labels stored in provenance/ differ in number. Evaluate this"
                " data set again."
            )
        if not problems.lines and provenance:
            scores = tuple(score(facts.metric, table, labels) for table in tables)
    return CheckedFile(path, header, provenance, scores), problems.all()


def check_together(
    files: Sequence[CheckedFile], sets: Mapping[str, SetFacts], *, partial: bool
) -> list[str]:
    """What is wrong between files: mixed models or shots, double seeds, seeds and data sets that
    are missing."""
    problems = []
    for key, what in (("model_name", "models"), ("n_shot", "numbers of shots")):
        values = _distinct(getattr(file.header, key) for file in files)
        if len(values) > 1:
            problems.append(
                f"files of different {what} are mixed: {', '.join(map(repr, values))}. Submit one"
                " at a time."
            )
    groups: dict[str, list[CheckedFile]] = {}
    for file in files:
        groups.setdefault(file.dataset, []).append(file)
    for name, own in groups.items():
        problems += _check_seeds(name, own, partial)
    missing = [name for name in sets if name not in groups]
    if missing and not partial:
        problems.append(
            f"{len(missing)} of {len(sets)} data sets are missing: {', '.join(missing)}. Evaluate"
            " them, or pass --partial (no average)."
        )
    return problems


def _check_seeds(name: str, files: Sequence[CheckedFile], partial: bool) -> list[str]:
    problems = []
    for key in KEYS:
        if key not in ("num_trainable_params", "rnd_seeds", "dataset_name", "model_name", "n_shot"):
            values = _distinct(getattr(file.header, key) for file in files)
            if len(values) > 1:
                problems.append(
                    f"'{name}': {key} differs between seeds: {', '.join(map(repr, values))}."
                    " Evaluate all seeds with one model."
                )
    for key in ("row_order", "class_order", "weights", "settings"):
        if len(_distinct(file.provenance.get(key) for file in files)) > 1:
            problems.append(
                f"'{name}': {key.replace('_', ' ')} differs between seeds. Evaluate all seeds"
                " again, with one model on one copy."
            )
    seeds = [seed for file in files for seed in file.seeds]
    double = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if double:
        problems.append(
            f"'{name}': seed {', '.join(map(str, double))} occurs more than once. Remove the file"
            " that is out of date."
        )
    shots = files[0].header.n_shot
    if shots in (0, -1) and set(seeds) != {0}:
        problems.append(
            f"'{name}': {'zero' if shots == 0 else 'full'}-shot predictions have the one seed 0,"
            f" not {seeds}."
        )
    if shots > 0 and not partial and set(FEW_SHOT_SEEDS) - set(seeds):
        lacking = sorted(set(FEW_SHOT_SEEDS) - set(seeds))
        problems.append(
            f"'{name}': seed {', '.join(map(str, lacking))} missing of 0, 1, 2. Evaluate with"
            " --seeds, or submit with --partial."
        )
    return problems


def _header(fields: Mapping[str, object], problems: _Problems) -> Header | None:
    """The fields before the predictions; None unless all are there and of the right kind."""
    kinds = {"model_name": str, "dataset_name": str, "n_shot": int, "rnd_seeds": list}
    for key in KEYS:
        if key not in fields:
            problems.add(
                f"key '{key}' is missing before the predictions. Expected: {', '.join(KEYS)}."
            )
        elif not _fits(fields[key], kinds.get(key)):
            problems.add(f"{key} is {fields[key]!r}. Evaluate this data set again.")
    seeds = fields.get("rnd_seeds")
    if isinstance(seeds, list) and not all(isinstance(seed, int) for seed in seeds):
        problems.add(f"rnd_seeds is {seeds!r}. Expected a list of integers.")
    for key in fields:
        if key not in KEYS:
            problems.add(f"unknown key '{key}'. Expected: {', '.join(KEYS)}, predictions.")
    return None if problems.lines else Header._make(fields[key] for key in KEYS)


def _fits(value: object, kind: type | None) -> bool:
    """Whether a field is of its kind; without one it is a count."""
    if isinstance(value, bool):
        return False
    if kind is not None:
        return isinstance(value, kind)
    return isinstance(value, int | float) and 0 <= value < math.inf


def _check_whole(
    header: Header,
    counts: Sequence[int],
    sets: Mapping[str, SetFacts],
    problems: _Problems,
) -> None:
    name, seeds, shots = header.dataset_name, header.rnd_seeds, header.n_shot
    if name not in sets:
        problems.add(
            f"'{name}' is not one of the {len(sets)} data sets.{did_you_mean(name, sets)} Leave it"
            " out, or pass --registry."
        )
    if len(counts) != len(seeds):
        problems.add(
            f"{len(counts)} seeds of predictions, and rnd_seeds lists {len(seeds)}. Evaluate this"
            " data set again."
        )
    if shots < -1:
        problems.add(f"n_shot is {shots}. Expected 0 (zero-shot), -1 (all) or the shots per class.")
    wanted = sets[name].splits["test"].num_images if name in sets else None
    for seed, count in zip(seeds, counts, strict=False):
        if wanted is not None and count != wanted:
            problems.add(
                f"seed {seed} has {count} rows, and the test part of '{name}' has {wanted} images."
            )


def _probabilities(
    values: list[object], row: int, facts: SetFacts | None, problems: _Problems
) -> list[float] | None:
    """A row of a known data set that is as long as there are classes and holds probabilities."""
    if facts is not None and len(values) != facts.num_classes:
        problems.add(
            f"row {row} has {len(values)} values, and '{facts.name}' has {facts.num_classes}"
            " classes.",
            "rows of a wrong length",
        )
        return None
    if not are_numbers(values):
        problems.add(
            f"row {row} holds a value that is not a number.",
            "rows with values that are not numbers",
        )
        return None
    lowest, highest, total = min(values, default=0), max(values, default=0), sum(values)
    if not -math.inf < total < math.inf:
        problems.add(f"row {row} holds NaN or infinity.", "rows with NaN or infinity")
    elif lowest < 0 or highest > 1:
        wrong = lowest if lowest < 0 else highest
        problems.add(
            f"row {row} holds {str(wrong)[:30]}, outside 0 to 1. Probabilities are needed.",
            "rows outside 0 to 1",
        )
    elif facts is not None and not facts.multi_label and abs(total - 1) > ROW_SUM_TOLERANCE:
        problems.add(f"row {row} sums to {total:.6f} instead of 1.", "rows that do not sum to 1")
    elif facts is not None:
        return values
    return None


def _check_order(
    facts: SetFacts, provenance: Provenance, trust_order: bool, problems: _Problems
) -> None:
    if provenance and provenance.get("dataset") != facts.name:
        problems.add(
            f"was evaluated on '{provenance.get('dataset')}', not on '{facts.name}'. Evaluate this"
            " data set again."
        )
    if trust_order:
        return
    if not provenance:
        problems.add(
            "the order of its rows and classes cannot be verified. Evaluate with vlkd, or pass"
            " --trust-order."
        )
    for doubt in provenance.get("doubts", ()):
        problems.add(f"{doubt} Evaluate on the official files, or pass --trust-order.")


def _table_shape(facts: SetFacts | None, labels: int) -> tuple[int, int]:
    if facts is None:
        return (0, 0)
    wanted = facts.splits["test"].num_images
    return (labels if wanted is None else wanted, facts.num_classes)


def _distinct(values: Iterable[object]) -> list[object]:
    found: list[object] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
