"""Few-shot samples and the validation split, row for row those of the toolkit."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Labels = Sequence[Sequence[int]]


class Split(NamedTuple):
    """Positions into the rows that were split."""

    train: list[int]
    valid: list[int]


def few_shot(labels: Labels, shots: int, seed: int, *, num_classes: int | None = None) -> list[int]:
    """The selected rows, in the order of sampling: shuffled, then selected greedily while their
    classes need more.

    A class with fewer rows than `shots` gives all it has. A row of several labels is left out once
    its least filled class has enough; before that it is selected if that class has no more than
    half, or if its fullest class has no more than 1.5 times enough. Up to `shots` rows without
    labels are selected, as long as a class needs more.

    Args:
        labels: class indices of every row.
        shots: rows wanted per class.
        seed: of the shuffle.
        num_classes: of the data set, by default those that occur; a class without rows never has
            enough.

    Source: vision-datasets 0.2.17, DatasetManifest.sample_few_shot_subset; later versions sample
        other rows.
    """
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    if num_classes is None:
        num_classes = len({label for own in labels for label in own})
    taken: Counter[int] = Counter()
    unlabeled = 0
    selected = []
    for row in order:
        own = labels[row]
        if not own:
            if unlabeled < shots:
                unlabeled += 1
                selected.append(row)
            continue
        least, most = min(taken[label] for label in own), max(taken[label] for label in own)
        if least >= shots or (least > shots / 2 and most > 1.5 * shots):
            continue
        taken.update(own)
        selected.append(row)
        if least + 1 >= shots and len(taken) == num_classes and min(taken.values()) >= shots:
            break
    return selected


def validation_split(labels: Labels, share: float = 0.2, *, multi_label: bool = False) -> Split:
    """Cut the first rows of every class off for validation: ceil(share * n) of its n rows.

    Multi-label rows count for all their classes: as long as a class lacks rows, the first remaining
        row that has it is taken.

    Args:
        labels: class indices of every row, in the order that counts as first.
        share: of each class.

    Source: Elevater_Toolkit_IC @00d0af7, evaluation/feature.py, get_dataloader.
    """
    counts = Counter(label for own in labels for label in own)
    wanted = {label: math.ceil(share * count) for label, count in counts.items()}
    if multi_label:
        valid = _cover(labels, wanted)
    else:
        valid = set()
        for row, own in enumerate(labels):
            if own and wanted[own[0]] > 0:
                wanted[own[0]] -= 1
                valid.add(row)
    return Split([row for row in range(len(labels)) if row not in valid], sorted(valid))


def _cover(labels: Labels, wanted: dict[int, int]) -> set[int]:
    valid: set[int] = set()
    rows_of: dict[int, list[int]] = {}
    for row in reversed(range(len(labels))):
        for label in labels[row]:
            rows_of.setdefault(label, []).append(row)
    for label in sorted(wanted):
        while wanted[label] > 0 and rows_of[label]:
            row = rows_of[label].pop()
            if row in valid:
                continue
            valid.add(row)
            for other in labels[row]:
                wanted[other] -= 1
    return valid
