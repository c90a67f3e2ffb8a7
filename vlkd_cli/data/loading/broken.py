"""Counting what could not be read, and stopping when it is too much."""

from __future__ import annotations

from vlkd_cli.data.batch import Batch, Skipped
from vlkd_cli.errors import DataError

_FEWEST = 5


class BrokenCount:
    """Distinct broken samples among the distinct samples seen by this process.

    Fewer than five never stop a run, unless none at all is allowed: of a small set, one broken file
    is a large share already.

    Args:
        max_share: the largest share that is put up with.
    """

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self._broken: dict[str, Skipped] = {}
        self._seen = 0

    def take(self, batch: Batch) -> None:
        """Count a batch.

        Raises:
            DataError: the share is exceeded.
        """
        self._seen += len(batch)
        if not batch.skipped:
            return
        for skipped in batch.skipped:
            if skipped.name not in self._broken:
                self._broken[skipped.name] = skipped
                self._seen += 1
        count = len(self._broken)
        if count > self.max_share * self._seen and (count >= _FEWEST or self.max_share == 0):
            first = next(iter(self._broken.values()))
            raise DataError(
                f"{count} of {self._seen} samples are broken ({count / self._seen:.1%}, allowed"
                f" {self.max_share:.1%}); the first: {first.name}: {first.reason}. Repair or remove"
                " them, or raise data.max_broken_share."
            )
