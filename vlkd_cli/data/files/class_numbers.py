"""From the labels of a table, numbers or names, to class numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vlkd_cli.errors import DataError

_MOST_CLASSES = 100_000
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def number_labels(labels: Sequence[str], where: str) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers int64 (-1 for an empty label), and class names where the labels are not class
    numbers themselves.

    Numbers are read as `dense_numbers` does; where one has more digits than an int64, all are ids.
    Anything else is a name, and names are numbered in alphabetical order.

    Args:
        labels: one text for each row.
        where: file and key, for messages.

    Raises:
        DataError: there are more than 100,000 names.
    """
    different = set(labels) - {""}
    if all(_NUMBER.fullmatch(label) for label in different):
        return dense_numbers(np.array([int(label or -1) for label in labels], dtype=np.int64))
    names = sorted(different, key=by_size if _are_ids(different) else None)
    if len(names) > _MOST_CLASSES:
        raise DataError(
            f"{where}: the column holds {len(names):,} different names. Is it the right column?"
        )
    number = {name: k for k, name in enumerate(names)} | {"": -1}
    return np.array([number[label] for label in labels], dtype=np.int64), names


def dense_numbers(numbers: np.ndarray) -> tuple[np.ndarray, list[str] | None]:
    """Class numbers int64, and the class names where `numbers` are ids.

    They are class numbers as they are below 100,000, or where half of the numbers up to the highest
    occur; a subset of a known set of classes has gaps. Ids beyond that are numbered by size, since
    whatever counts classes would make room for every number up to them. -1 marks an unlabeled row.
    """
    numbers = np.maximum(numbers, -1)
    highest = int(numbers.max(initial=-1))
    if highest < _MOST_CLASSES:
        return numbers, None
    ids = np.unique(numbers[numbers >= 0])
    if highest < 2 * len(ids):
        return numbers, None
    labels = np.where(numbers < 0, -1, np.searchsorted(ids, numbers))
    return labels, [str(number) for number in ids.tolist()]


def _are_ids(labels: set[str]) -> bool:
    return all(label.isascii() and label.isdigit() for label in labels)


def by_size(label: str) -> tuple[int, str, str]:
    """What sorts digits by their number, however long; `int` has a limit."""
    digits = label.lstrip("0")
    return len(digits), digits, label


def class_number(content: bytes) -> int:
    """The class number that a member of a shard holds, or -1."""
    text = content.decode("latin-1").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else -1
