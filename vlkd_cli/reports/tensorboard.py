"""TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.reports.sink import Sink


class TensorBoardSink(Sink):
    """Scalars as TensorBoard event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        super().__init__(folder, resume_step)
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an interrupted run logged beyond the point it continues from.
        self._writer = SummaryWriter(
            str(folder / "tensorboard"), purge_step=None if resume_step is None else resume_step + 1
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()
