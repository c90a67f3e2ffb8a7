"""Contrast in which samples of one class are positives of each other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.logit_scale import ScaledDistiller
from vlkd_cli.distillers.similarity import (
    cross_logits,
    own_columns,
    soft_cross_entropy,
    unit,
)
from vlkd_cli.distributed.collectives import gather_without_grad


class UniCL(ScaledDistiller):
    """The contrastive loss over image, text and label: every pair of the same class is a positive,
    all of equal weight.

    Labels come with the data and must mean the same on every rank; a sample labeled -1 is a class
    of its own, wherever it is. With no labeled sample in the batch this is InfoNCE. Both sides are
    L2-normalized here.

    Source: Yang et al., Unified Contrastive Learning in Image-Text-Label Space, CVPR 2022,
    arXiv:2204.03610, algorithm 1. The authors' code has no loss. Differs in using log-softmax where
    the algorithm takes the logarithm of a softmax, which is not finite for wide logits.
    """

    direction = "symmetric"
    minimum_batch = 2
    crosses_ranks = "features of both sides, with gradient; labels"
    paper = "Yang et al. 2022, arXiv:2204.03610"
    formula = (
        r"L = \frac{1}{2} \left[ \mathrm{CE}(Q, Z) + \mathrm{CE}(Q, Z^{\top}) \right],"
        r" \quad Q_{ij} = \frac{[y_i = y_j]}{\sum_k [y_i = y_k]}, \quad Z_{ij} = s \cos(x_i, t_j)"
    )

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        labels: Int[Tensor, "B"],
    ) -> Float[Tensor, ""]:
        same = (labels[:, None] == gather_without_grad(labels)[None, :]) & (labels >= 0)[:, None]
        itself = own_columns(len(labels), labels.device)
        same[torch.arange(len(labels), device=labels.device), itself] = True
        # The relation is symmetric, so one set of targets serves both directions.
        targets = same.to(student.dtype) / same.sum(dim=1, keepdim=True)
        from_student, from_teacher = cross_logits(unit(student), unit(teacher), self.scale)
        return (
            soft_cross_entropy(targets, from_student) + soft_cross_entropy(targets, from_teacher)
        ) / 2
