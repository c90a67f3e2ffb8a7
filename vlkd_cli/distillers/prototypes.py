"""What DINO and ProtoCPC share: views as lists or single tensors, and a prototype layer tied
between student and teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.prototype_loss import Sides
from vlkd_cli.distillers.similarity import unit

Views = Tensor | Sequence[Tensor]


class PrototypeDistiller(Distiller):
    """Base of the objectives over prototypes.

    The layer belongs to the objective: both sides are multiplied with the same rows, whose gradient
    comes from the student alone. Nothing is copied between towers, and as the rows are a plain
    parameter, normalised when used, deepcopy, EMA and state dicts need no care.
    """

    prototypes: nn.Parameter | None
    num_prototypes: int | None
    """None: the inputs are logits already."""

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        width = student_width if isinstance(student_width, int) else student_width[0]
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

    def sides(self, student: Views, teacher: Views) -> tuple[Sides, Tensor]:
        """Stacked views of both sides, normalised where prototypes are applied here, and which
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
