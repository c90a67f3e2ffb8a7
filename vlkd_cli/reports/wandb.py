"""Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vlkd_cli.reports.sink import Sink


class WandbSink(Sink):
    """Values as a Weights & Biases run.

    Args:
        project: the project that the run appears in.
        entity: the team or user; by default the account's own.
        mode: "offline" writes to the run folder, to be sent later with `wandb sync`; by default
            WANDB_MODE.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        *,
        project: str = "vlkd",
        entity: str | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
    ) -> None:
        super().__init__(folder, resume_step)
        import wandb

        self._run = wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            dir=str(folder),
            name=folder.name,
            id=folder.name,
            resume="allow",
            settings={"silent": True},
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()
