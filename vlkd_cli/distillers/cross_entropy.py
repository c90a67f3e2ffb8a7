"""Classification of the labelled samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.distiller import Context, Distiller
from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.types import PositiveInt, Probability


class CrossEntropy(Distiller):
    """Classify the student's features by the labels of the data, through a linear classifier of its
    own.

    A mean over the labelled samples of all ranks: samples labelled -1 take no part, and a batch
    without a labelled sample has loss 0. There is no teacher.

    Args:
        num_classes: classes of the linear classifier; null takes the student's features themselves
            for logits.
        label_smoothing: share of the target that is spread evenly over the classes.

    Source: as in ITRA, itra/loss/CrossEntropy.py, whose features are the logits. Differs in
    averaging over the ranks' labelled samples, where that code compares local features with the
    labels of all ranks.
    """

    direction = "one_way"
    needs = frozenset({"labels"})
    needs_teacher = False
    crosses_ranks = "the number of labelled samples"
    paper = ""

    def __init__(
        self, *, num_classes: PositiveInt | None = None, label_smoothing: Probability = 0.0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.classifier: nn.Module = nn.Identity()

    def setup(self, student_width: int | Sequence[int], teacher_width: int | Sequence[int]) -> None:
        if self.num_classes is not None:
            assert isinstance(student_width, int)
            classifier = nn.Linear(student_width, self.num_classes)
            # The same start on every rank, whatever its random state.
            nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(0))
            nn.init.zeros_(classifier.bias)
            self.classifier = classifier

    def check_data(self, num_samples: int, highest_label: int | None) -> None:
        super().check_data(num_samples, highest_label)
        if (
            self.num_classes is not None
            and highest_label is not None
            and highest_label >= self.num_classes
        ):
            raise RecipeError(
                f"the data has labels up to {highest_label}, distiller 'cross_entropy' only"
                f" {self.num_classes} classes. Set num_classes: {highest_label + 1}."
            )

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Tensor | None = None,
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        if context is None or context.labels is None:
            raise DataError(
                "distiller 'cross_entropy' needs labels, and the data has none. Read labelled data."
            )
        logits = self.classifier(student)
        total = F.cross_entropy(
            logits,
            context.labels,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        labelled = sum_without_grad((context.labels >= 0).sum()).clamp_min(1)
        return world_size() * total / labelled
