"""Classification of the labeled samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.class_weights import require_num_classes
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.recipe.types import PositiveInt, Probability


class CrossEntropy(Distiller):
    """Classify the student's features by the labels of the data, through a linear classifier of its
    own.

    A mean over the labeled samples of all ranks: samples labeled -1 take no part, and a batch
    without a labeled sample has loss 0. There is no teacher.

    Args:
        num_classes: classes of the linear classifier; null takes the student's features themselves
            for logits.
        label_smoothing: fraction of the target that is spread evenly over the classes.

    Source: as in ITRA, itra/loss/CrossEntropy.py, whose features are the logits. Differs in
    averaging over the ranks' labeled samples, where that code compares local features with the
    labels of all ranks.
    """

    direction = "one_way"
    crosses_ranks = "the number of labeled samples"
    paper = ""
    formula = (
        r"L = -\frac{1}{N} \sum_{i: y_i \ge 0} q_i \cdot \log \mathrm{softmax}(W s_i + b),"
        r" \quad q_{ik} = (1 - \epsilon) [k = y_i] + \frac{\epsilon}{C},"
        r" \quad N = |\{i: y_i \ge 0\}|"
    )

    def __init__(
        self, *, num_classes: PositiveInt | None = None, label_smoothing: Probability = 0.0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.classifier: nn.Module = nn.Identity()

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        if self.num_classes is not None:
            assert isinstance(student, int)
            classifier = nn.Linear(student, self.num_classes)
            # The same start on every rank, whatever its random state.
            nn.init.normal_(classifier.weight, std=0.01, generator=torch.Generator().manual_seed(0))
            nn.init.zeros_(classifier.bias)
            self.classifier = classifier

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        if self.num_classes is not None:
            require_num_classes("cross_entropy", self.num_classes, facts.highest_label)

    def forward(
        self, student: Float[Tensor, "B D"], *, labels: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        logits = self.classifier(student)
        total = F.cross_entropy(
            logits,
            labels,
            ignore_index=-1,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        labeled = sum_without_grad((labels >= 0).sum()).clamp_min(1)
        return world_size() * total / labeled
