"""Which rows of a table belong to one image, where its captions begin, and its class: what one pass
over the rows tells."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.errors import DataError

if TYPE_CHECKING:
    from vlkd_cli.data.readers.csv import CSV


def group_rows(table: CSV, *, group: bool, several: bool) -> dict[str, np.ndarray]:
    """Arrays that a table's index needs beside the row offsets; empty where every row is one image
    with one caption.

    `grouped_rows` and `group_starts`: rows of each sample; `caption_starts`: captions before each
    sample; `labels`: one per sample.

    Args:
        table: whose rows are found already.
        group: rows of the same image are one sample, in the order in which images first occur.
        several: a row may hold any number of captions.
    """
    num_rows = len(table._index["starts"]) - 2
    arrays: dict[str, np.ndarray] = {}
    if not (group or several or table._label is not None):
        return arrays
    keys = np.zeros(num_rows if group else 0, dtype=np.uint64)
    counts = np.ones(num_rows, dtype=np.int64)
    labels: list[str] = []
    for row in range(num_rows):
        try:
            fields = table._fields(row)
        except Broken:
            # The row stays, as an image of its own that cannot be read: the loader counts and names
            # it.
            fields = None
        if group:
            name = f"broken row {row}" if fields is None else fields[table._image]
            keys[row] = int.from_bytes(
                hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
                "little",
            )
        if several:
            counts[row] = 0 if fields is None else _num_captions(table, fields)
        if table._label is not None:
            labels.append("" if fields is None else fields[table._label].strip())
    first_rows = np.arange(num_rows)
    if group:
        _, firsts, members, sizes = np.unique(
            keys, return_index=True, return_inverse=True, return_counts=True
        )
        if len(firsts) < num_rows:
            by_occurrence = np.argsort(firsts, kind="stable")
            rank = np.empty(len(firsts), dtype=np.int64)
            rank[by_occurrence] = np.arange(len(firsts))
            arrays["grouped_rows"] = np.argsort(rank[members], kind="stable")
            arrays["group_starts"] = np.concatenate([[0], np.cumsum(sizes[by_occurrence])])
            counts = np.add.reduceat(counts[arrays["grouped_rows"]], arrays["group_starts"][:-1])
            first_rows = firsts[by_occurrence]
    if several or "group_starts" in arrays:
        arrays["caption_starts"] = np.concatenate([[0], np.cumsum(counts)])
    if table._label is not None:
        arrays |= _numbered([labels[row] for row in first_rows], table.path)
    return arrays


def _num_captions(table: CSV, fields: list[str]) -> int:
    from vlkd_cli.data.readers.csv import split_captions

    cells = [fields[column] for column in table._captions]
    if table.caption_separator is not None:
        return len(split_captions(cells, table.caption_separator))
    return sum(bool(cell.strip()) for cell in cells)


def _numbered(labels: list[str], path: str) -> dict[str, np.ndarray]:
    try:
        return {
            "labels": np.array([int(label) if label else -1 for label in labels], dtype=np.int64)
        }
    except ValueError:
        pass  # names, then
    names = sorted(set(labels) - {""})
    if len(names) > 100_000:
        raise DataError(
            f"table {path}: the column of data.label holds {len(names):,} different names; is it"
            " the right column?"
        )
    number = {name: k for k, name in enumerate(names)} | {"": -1}
    return {
        "labels": np.array([number[label] for label in labels], dtype=np.int64),
        "class_names": np.frombuffer("\0".join(names).encode(), dtype=np.uint8),
    }
