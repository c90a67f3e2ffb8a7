"""Objectives that go wrong on purpose, named from recipes as a third party's would be."""

from __future__ import annotations

import os
import signal
import time

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.infonce import InfoNCE
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.recipe.types import Progress


class FailsAt(InfoNCE):
    """InfoNCE that raises at a step on one rank.

    Args:
        step: the optimizer step, from 1.
        on_rank: who fails.
    """

    def __init__(self, *, step: int = 3, on_rank: int = 1) -> None:
        super().__init__()
        self.step, self.on_rank = step, on_rank

    def forward(  # type: ignore[override]
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        if progress.step + 1 == self.step and rank() == self.on_rank:
            raise RuntimeError("the projector caught fire\nsecond line")
        return super().forward(student, teacher)


class DiesAt(InfoNCE):
    """InfoNCE whose process is killed at a step, as the out-of-memory killer would.

    Args:
        step: the optimizer step, from 1.
        on_rank: who is killed.
    """

    def __init__(self, *, step: int = 3, on_rank: int = 0) -> None:
        super().__init__()
        self.step, self.on_rank = step, on_rank

    def forward(  # type: ignore[override]
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        # A resumed run gets past the step: the marker shows that it has happened.
        marker = os.environ.get("VLKD_TEST_MARKER", "")
        if (
            progress.step + 1 == self.step
            and rank() == self.on_rank
            and not (marker and os.path.exists(marker))
        ):
            if marker:
                open(marker, "w").close()
            os.kill(os.getpid(), 9)
        return super().forward(student, teacher)


class Slow(InfoNCE):
    """InfoNCE that takes a while, so that a signal finds it at work.

    Args:
        seconds: for each step.
    """

    def __init__(self, *, seconds: float = 0.2) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        time.sleep(self.seconds)
        return super().forward(student, teacher)


class Stops(Distiller):
    """A term that is 0 and interrupts its process at a step, as Ctrl-C would.

    Args:
        step: the optimizer step, from 1.
    """

    direction = "one_way"

    def __init__(self, *, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(  # type: ignore[override]
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        progress: Progress,
    ) -> Float[Tensor, ""]:
        if progress.step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)
        return 0 * student.sum()
