"""Contrast in which samples of one class are positives of each other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Context, Distiller
from vlkd_cli.distillers.similarity import (
    add_log_scale,
    clamp_log_scale,
    cross_logits,
    own_columns,
    soft_cross_entropy,
    unit,
)
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import Positive


class UniCL(Distiller):
    """The contrastive loss over image, text and label: every pair of the same class is a positive,
    all of equal share.

    Labels come with the data and must mean the same on every rank; a sample labelled -1 is a class
    of its own, wherever it is. With no labelled sample in the batch this is InfoNCE. Both sides are
    normalised here.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm).
        learnable: whether the scale is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest scale; null leaves it unbounded.

    Source: Yang et al., Unified Contrastive Learning in Image-Text-Label Space, CVPR 2022,
    arXiv:2204.03610, algorithm 1. The authors' code has no loss. Differs in using log-softmax where
    the algorithm takes the logarithm of a softmax, which is not finite for wide logits.
    """

    direction = "symmetric"
    needs = frozenset({"equal_width", "labels"})
    crosses_ranks = "features of both sides, with gradient; labels"
    paper = "Yang et al. 2022, arXiv:2204.03610"

    log_scale: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive = 14.285714285714286,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
    ) -> None:
        super().__init__()
        self.max_logit_scale = max_logit_scale
        self.learnable = learnable
        add_log_scale(self, logit_scale, learnable)

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        if context is None or context.labels is None:
            raise DataError(
                "distiller 'unicl' needs labels, and the data has none. Read labelled data, or use"
                " distiller 'infonce'."
            )
        labels = context.labels
        same = (labels[:, None] == gather_without_grad(labels)[None, :]) & (labels >= 0)[:, None]
        itself = own_columns(len(labels), labels.device)
        same[torch.arange(len(labels), device=labels.device), itself] = True
        # The relation is symmetric, so one set of targets serves both directions.
        targets = same.to(student.dtype) / same.sum(dim=1, keepdim=True)
        from_student, from_teacher = cross_logits(
            unit(student), unit(teacher), self.log_scale.exp()
        )
        return (
            soft_cross_entropy(targets, from_student) + soft_cross_entropy(targets, from_teacher)
        ) / 2

    def commit(self, step: int) -> None:
        if self.learnable:
            clamp_log_scale(self.log_scale, self.max_logit_scale)
