"""The interface of sinks, to which numbers are logged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Sink:
    """Base of the sinks: `folder` (the run's) and `resume_step` come from the engine, keyword-only
    arguments are the recipe keys.

    On a resumed run, `resume_step` is the step it continues from; what was logged after it is to be
    dropped.
    """

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self.folder = folder
        self.resume_step = resume_step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one optimizer step, e.g. `{"train/loss": 1.2}`. If a step is logged
        twice, the later values count."""
        raise NotImplementedError

    def finish(self) -> None:
        """Flush and close."""
