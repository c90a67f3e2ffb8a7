"""Affinity mimicking of TinyCLIP."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.logit_scale import ScaledDistiller
from vlkd_cli.distillers.similarity import (
    Pair,
    cross_logits,
    soft_cross_entropy,
    unit,
)
from vlkd_cli.recipe.types import Positive, Probability


class Affinity(ScaledDistiller):
    """Match the student pair's image-to-text and text-to-image distributions over the batch with
    those of the teacher pair.

    L = w * (CE(sm Q, Z) + CE(sm Q^T, Z^T)) / 2 + (1 - w) * InfoNCE(Z), Z the student's and Q the
    teacher's scaled cosines. As a cross-entropy it ends at the teacher's entropy, not at 0. Student
    and teacher may have different widths. open_clip's distillation, contrastive plus distilling
    loss with one student scale, is `affinity_weight: 0.5` with `weight: 2`.

    Args:
        affinity_weight: w, the fraction of the affinity term; the rest goes to the contrastive
            loss of the student pair.
        logit_scale: initial factor on the student's cosines (not its logarithm).
        teacher_logit_scale: factor on the teacher's cosines.

    Source: Wu et al., TinyCLIP, ICCV 2023, arXiv:2309.12314, equation 2; microsoft/Cream,
    TinyCLIP/src/open_clip/clip_soft_loss.py, whose scripts hold both scales at 50; open_clip,
    src/open_clip/loss.py:DistillClipLoss.
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = "features of both towers of both models, the student's with gradient"
    paper = "Wu et al. 2023, arXiv:2309.12314"
    formula = (
        r"L = \frac{w}{2} \left[ \mathrm{CE}(\sigma(Q), Z)"
        r" + \mathrm{CE}(\sigma(Q^{\top}), Z^{\top}) \right] + (1 - w) L_{\mathrm{InfoNCE}}(Z),"
        r" \quad Z_{ij} = s \cos(x_i, y_j), \quad Q_{ij} = s_t \cos(u_i, v_j)"
    )

    def __init__(
        self,
        *,
        affinity_weight: Probability = 1.0,
        logit_scale: Positive = 50.0,
        learnable: bool = False,
        max_logit_scale: Positive | None = 100.0,
        teacher_logit_scale: Positive = 50.0,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.affinity_weight = affinity_weight
        self.teacher_logit_scale = teacher_logit_scale

    def forward(
        self,
        student: Pair,
        teacher: Pair,
    ) -> Float[Tensor, ""]:
        image, text = (unit(side) for side in student)
        scale = self.scale
        loss = 0 * scale
        if self.affinity_weight > 0:
            ours = cross_logits(image, text, scale)
            theirs = cross_logits(
                unit(teacher[0].detach()), unit(teacher[1].detach()), self.teacher_logit_scale
            )
            loss = loss + self.affinity_weight / 2 * sum(
                soft_cross_entropy(q.softmax(dim=1), z) for q, z in zip(theirs, ours, strict=True)
            )
        if self.affinity_weight < 1:
            loss = loss + (1 - self.affinity_weight) * blocked_infonce(image, text, scale)
        return loss
