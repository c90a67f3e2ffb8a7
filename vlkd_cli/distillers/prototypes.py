"""What DINO and ProtoCPC share: views as lists or single outputs, and a prototype layer tied
between student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Distiller, Widths, widths_of
from vlkd_cli.distillers.prototype_loss import Sides
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import mean_without_grad
from vlkd_cli.recipe.types import Positive, PositiveInt, PositiveSchedulable

Views = Float[Tensor, "B D"] | Sequence[Float[Tensor, "B D"]]
"""One view, or several."""


class PrototypeDistiller(Distiller):
    """Base of the objectives over prototypes.

    The layer belongs to the objective: both sides are multiplied with the same rows, whose gradient
    comes from the student alone. Nothing is copied between towers, and as the rows are a plain
    parameter, L2-normalized when used, deepcopy, EMA and state dicts need no care.

    Args:
        num_prototypes: size of the layer that both sides share; null where the towers have layers
            of their own.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.
    """

    skips_own_picture = True

    prototypes: nn.Parameter | None

    def __init__(
        self,
        *,
        num_prototypes: PositiveInt | None = 65536,
        student_temperature: Positive = 0.1,
        teacher_temperature: PositiveSchedulable = 0.04,
    ) -> None:
        super().__init__()
        self.num_prototypes = num_prototypes
        self.prototypes = None
        self.student_temperature, self.teacher_temperature = (
            student_temperature,
            teacher_temperature,
        )

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        width = widths_of(student)[0]
        if self.num_prototypes is None:
            self.make_state(width)
            return
        # Only directions matter, and the same ones on every rank, whatever its random state.
        rows = torch.randn(self.num_prototypes, width, generator=torch.Generator().manual_seed(0))
        self.prototypes = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.make_state(self.num_prototypes)

    def make_state(self, num_prototypes: int) -> None:
        """Create the buffer of one number for each prototype."""
        raise NotImplementedError

    def average(self, buffer: Tensor, momentum: float) -> None:
        """Move a buffer towards the mean over ranks and steps of what was staged."""
        staged = self.take_staged()
        if staged:
            mean = mean_without_grad(torch.stack([one for (one,) in staged]).mean(dim=0))
            buffer.mul_(momentum).add_(mean, alpha=1 - momentum)

    def sides(self, student: Views, teacher: Views) -> tuple[Sides, Tensor]:
        """Stacked views of both sides, normalized where prototypes are applied here, and which
        pairs of them are compared.

        Where both sides are lists, the teacher's views are the first of the student's, and a view
        is not compared with itself.
        """
        ours = [student] if isinstance(student, Tensor) else list(student)
        theirs = [view.detach() for view in ([teacher] if isinstance(teacher, Tensor) else teacher)]
        pairs = torch.ones(len(theirs), len(ours), dtype=ours[0].dtype, device=ours[0].device)
        if len(ours) > 1 and not isinstance(teacher, Tensor):
            pairs.fill_diagonal_(0)
        if self.prototypes is not None:
            ours, theirs = [unit(view) for view in ours], [unit(view) for view in theirs]
        return Sides(torch.stack(ours), torch.stack(theirs), self.prototypes), pairs
