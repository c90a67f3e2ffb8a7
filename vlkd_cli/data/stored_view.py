"""Images of a frozen tower whose features are being stored: the loader delivers features where all
rows of a batch have them, else the images and where their features belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.images.augment import Augment
from vlkd_cli.data.views import ImageView
from vlkd_cli.preprocessing import ImageInput

IMAGES, FEATURES, ROWS, TABLES = "images", "features", "rows", "tables"
"""Keys of a stored tower's input, `[B, V, ...]` each: images or features, and the row and table of
each."""


class DrawTable(Protocol):
    """The table of one augmentation as loader workers see it; survives pickling."""

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Which rows are complete, bool; those of samples that cannot be read among them."""
        ...

    def reason(self, row: int) -> str | None:
        """Why a row's sample cannot be read; None where it can, or where that is not known yet."""
        ...

    def note(self, rows: np.ndarray, name: str, reason: str) -> None:
        """Mark the rows of a sample that cannot be read."""
        ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Their features, `[n, D]` float32."""
        ...


class StoredView(ImageView):
    """The images of an ImageView, or their stored features.

    Args:
        expected, augment, copies: see ImageView.
        tables: one for each augmentation; empty: nothing is stored and images are always delivered.
        first: number of the first table among all tables of the tower.
    """

    def __init__(
        self,
        expected: ImageInput,
        augment: Augment | None,
        *,
        copies: int,
        tables: Sequence[DrawTable] = (),
        first: int = 0,
    ) -> None:
        super().__init__(expected, augment, copies=copies, by_draw=True, alone=True)
        self.tables, self.first = list(tables), first

    def stored(self, rows: np.ndarray, draws: np.ndarray) -> bool:
        """Whether all of these samples have features under these augmentations."""
        return bool(self.tables) and not self.missing(rows, draws).any()

    def missing(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Which of these samples have no features under these augmentations, bool."""
        missing = np.zeros(len(rows), dtype=np.bool_)
        for table, chosen in self._by_table(draws):
            done = table.stored(self._rows(rows[chosen]))
            missing[chosen] = ~done.reshape(-1, self.pictures).all(axis=1)
        return missing

    def reason(self, row: int, draw: int) -> str | None:
        """Why a sample cannot be read, where that was found before."""
        return self.tables[draw].reason(row * self.pictures) if self.tables else None

    def note(self, row: int, draw: int, name: str, reason: str) -> None:
        """Remember that a sample cannot be read, so that its rows count as complete."""
        if self.tables:
            self.tables[draw].note(self._rows(np.array([row])), name, reason)

    def images(self, samples: Sequence[Sample], images: Tensor) -> dict[str, Tensor]:
        """The tower's input where some samples have no features."""
        return {IMAGES: images if self.pictures > 1 else images[:, None], **self._lookup(samples)}

    def features(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The tower's input where all of them have."""
        lookup = self._lookup(samples)
        rows = lookup[ROWS].numpy().ravel()
        draws = np.repeat([sample.draw for sample in samples], self.pictures)
        found: np.ndarray | None = None
        for table, chosen in self._by_table(draws):
            own = table.gather(rows[chosen])
            found = (
                np.empty((len(rows), own.shape[1]), dtype=np.float32) if found is None else found
            )
            found[chosen] = own
        assert found is not None
        values = torch.from_numpy(found).view(len(samples), self.pictures, -1)
        return {FEATURES: values, **lookup}

    def _lookup(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        rows = self._rows(np.array([sample.index for sample in samples], dtype=np.int64))
        tables = torch.tensor([[self.first + sample.draw] for sample in samples])
        return {
            ROWS: torch.from_numpy(rows).view(len(samples), self.pictures),
            TABLES: tables.expand(-1, self.pictures).contiguous(),
        }

    def _rows(self, samples: np.ndarray) -> np.ndarray:
        """Rows of all pictures of the samples, picture after picture."""
        rows: np.ndarray = (samples[:, None] * self.pictures + np.arange(self.pictures)).ravel()
        return rows

    def _by_table(self, draws: np.ndarray) -> list[tuple[DrawTable, np.ndarray]]:
        return [(self.tables[draw], draws == draw) for draw in np.unique(draws).tolist()]
