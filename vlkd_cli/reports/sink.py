"""What every sink is: a place that numbers go to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Sink:
    """Base of the sinks: `folder` (the run's) comes from the engine, keyword-only constructor arguments are the recipe keys."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one optimizer step, e.g. `{"train/loss": 1.2}`. Logging a step twice keeps the later values."""
        raise NotImplementedError

    def finish(self) -> None:
        """Flush and close."""
