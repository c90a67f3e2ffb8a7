"""How often two samples of a step have the same caption."""

from __future__ import annotations

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.caption_choice import chosen
from vlkd_cli.data.keys import key_of
from vlkd_cli.data.loading.choices import choices
from vlkd_cli.data.loading.order import Order
from vlkd_cli.data.readers.reader import Reader

STEPS = 100
"""Steps that are looked at."""
MOST_ROWS = 65_536
"""Captions that are read for it."""


def fraction_of_duplicates(reader: Reader, order: Order, *, seed: int, step_rows: int) -> float:
    """The fraction of the rows of a step whose caption is another row's of that step, the mean over
    the first steps of the first epoch, at most `STEPS` of them.

    Args:
        step_rows: samples of a step over all ranks.
    """
    steps = max(min(STEPS, MOST_ROWS // step_rows, len(order) // step_rows), 1)
    found = []
    for step in range(steps):
        rows = order.rows(0, step * step_rows, min((step + 1) * step_rows, len(order)))
        keys = _keys(reader, rows, choices(seed, 0, rows))
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        found.append(float(((counts[inverse] > 1) & (keys >= 0)).mean()))
    return sum(found) / len(found)


def _keys(reader: Reader, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    keys = np.full(len(rows), -1, dtype=np.int64)
    for slot, (row, number) in enumerate(zip(rows.tolist(), numbers.tolist(), strict=True)):
        try:
            captions = reader.captions(row)
            if reader.text_names:
                captions = captions[slice(*reader.text_span(row))]
            if captions and reader.weighs_captions:
                number = chosen(number, reader.caption_sources(row))
        except Broken:
            continue  # the loader reports it
        if captions:
            keys[slot] = key_of(captions[number % len(captions)])
    return keys
