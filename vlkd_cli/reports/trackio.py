"""Trackio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.reports.sink import Sink


class TrackioSink(Sink):
    """Values as a Trackio run, shown by `trackio show`.

    Trackio deletes nothing: what an interrupted run logged beyond the step that it continues from
    appears twice.

    Args:
        project: the project that the run appears in.
        space: a Hugging Face Space that values are sent to, as OWNER/NAME; by default they stay on
            this machine, in TRACKIO_DIR.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        *,
        project: str = "vlkd",
        space: str | None = None,
    ) -> None:
        super().__init__(folder, resume_step)
        import trackio

        self._run = trackio.init(project=project, name=folder.name, space_id=space, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()
