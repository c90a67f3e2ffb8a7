"""Classification by cosines with a margin on the own class: ArcFace, CosFace and neither."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.class_weights import class_weights, require_num_classes
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distillers.labeled_rows import mean_over_counted
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.types import NonNegative, Positive, PositiveInt


class MarginSoftmax(Distiller):
    """Classify rows by their cosine to a learned row per class, made harder for the own class.

    Cross-entropy over scale * cosine, a mean over the labeled rows of all ranks. The own class's
    cosine is cos(angle + margin) ("arcface"), cosine - margin ("cosface") or as it is ("none").
    The class rows are left out of exports; give them a learning rate of their own with `lr:`,
    usually 10 to 100 times that of the tower. With few classes a scale of 16 works better than 64.

    Args:
        num_classes: rows of the classifier.
        kind: "arcface", "cosface" or "none".
        margin: radians of arcface (null: 0.5), cosine of cosface (null: 0.35).
        scale: multiplies the cosines.

    Source: Deng et al., ArcFace, CVPR 2019, arXiv:1801.07698, equation 3; Wang et al., CosFace,
    CVPR 2018, arXiv:1801.09414, equation 4. Beyond pi - margin arcface falls on as
    cosine - margin sin(margin), as in pytorch-metric-learning 2.9. Differs in taking the sine from
    the cosine: the gradient of an arc cosine is infinite where a row meets its class.
    """

    direction = "symmetric"
    crosses_ranks = "the number of labeled rows"
    paper = "Deng et al., CVPR 2019, arXiv:1801.07698"
    formula = (
        r"L = -\frac{1}{N} \sum_i \log \frac{e^{s \psi(\theta_{i y_i})}}"
        r"{e^{s \psi(\theta_{i y_i})} + \sum_{k \neq y_i} e^{s \cos \theta_{ik}}},"
        r" \quad \psi(\theta) = \cos(\theta + m) \text{ (arcface)},"
        r" \ \cos \theta - m \text{ (cosface)},"
        r" \quad \cos \theta_{ik} = \cos(x_i, w_k)"
    )
    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "kind": {"none": ("margin",)},
    }

    weights: nn.Parameter

    def __init__(
        self,
        *,
        num_classes: PositiveInt,
        kind: Literal["arcface", "cosface", "none"] = "arcface",
        margin: NonNegative | None = None,
        scale: Positive = 64.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.kind, self.scale = num_classes, kind, scale
        self.margin = {"arcface": 0.5, "cosface": 0.35, "none": 0.0}[kind]
        if margin is not None:
            self.margin = margin

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert isinstance(student, tuple)
        self.weights = class_weights(self.num_classes, student[0])

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        require_num_classes("margin_softmax", self.num_classes, facts.highest_label)

    def forward(
        self, student: Sequence[Float[Tensor, "B D"]], *, labels: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        labels = labels.repeat(len(student))
        is_labeled = labels >= 0
        cosines = unit(torch.cat(list(student))) @ unit(self.weights).T
        own_class = labels.clamp_min(0)[:, None]
        hardened = self._hardened(cosines.gather(1, own_class))
        logits = self.scale * cosines.scatter(1, own_class, hardened)
        per_row = F.cross_entropy(logits, own_class.squeeze(1), reduction="none")
        return mean_over_counted((per_row * is_labeled).sum(), is_labeled.sum())

    def _hardened(self, cosine: Float[Tensor, "B 1"]) -> Float[Tensor, "B 1"]:
        """The own class's cosine with the margin."""
        if self.kind == "none":
            return cosine
        if self.kind == "cosface":
            return cosine - self.margin
        sine = (1 - cosine.square()).clamp_min(1e-12).sqrt()
        turned = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        fallen = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine >= -math.cos(self.margin), turned, fallen)
