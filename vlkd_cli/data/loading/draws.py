"""Augmentations that belong to a row of the data instead of a position of an epoch, so that what a
frozen tower makes of them can be stored."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlkd_cli.data.loading.shuffling import hashed

_PURPOSE = 2
"""Separates these seeds from those of texts (0) and of positions (1)."""


class Draws(NamedTuple):
    """K augmentations of each image; pass e over the data shows number e mod K.

    Args:
        total: K.
        seed: of the augmentations; not the run's, so that runs of other seeds share them.
    """

    total: int
    seed: int = 0

    def numbers(self, passes: np.ndarray) -> np.ndarray:
        """Which of the K augmentations each pass over the data shows, int64."""
        return np.asarray(passes, dtype=np.int64) % self.total

    def seeds(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Seeds of rows under their augmentations, uint64 below 2^63."""
        return hashed(self.seed, numbers, rows, _PURPOSE) >> np.uint64(1)
