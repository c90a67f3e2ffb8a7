"""The sigmoid loss of SigLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_siglip
from vlkd_cli.distillers.negatives import Negatives
from vlkd_cli.distillers.pair_contrast import PairContrast
from vlkd_cli.recipe.types import Positive, Probability


class SigLIP(PairContrast):
    """Every pair of the batch is judged on its own: matching or not.

    L = (1/N) [sum_ij softplus(Z_ij) - sum_i Z_ii] with Z = scale * cos(student, teacher) + bias;
    the division is by N, not N^2. Both sides are L2-normalized here and both learn, unless one is
    frozen.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm); `from towers`: factor and
            bias that the dual encoder was trained to whose halves are compared.
        logit_bias: initial bias of the logits; without effect if the towers have their own.
        learnable: whether scale and bias are trained; the scale then stays within [1,
            max_logit_scale] after each step.
        max_logit_scale: highest scale; null leaves it unbounded, as fine-tuning weights whose scale
            is above 100 needs.
        positives: which pairs match: `diagonal`, those of a sample alone; or also those of samples
            with an equal `caption` (white space aside), an equal `label`, or an equal entry of the
            column of the data that is named, on any rank.
        positive_weight: target of pairs that match off the diagonal; 0 leaves them out.
        grade: column of the data with that target for pairs whose second sample a row is, in 0 to
            1, instead.
        negatives_of: whose `negatives` a sample is compared with: those of the `batch`, of all
            ranks, or its `own` alone. Each adds softplus(Z) to the sum.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343,
    equation 1; open_clip, src/open_clip/loss.py:SigLipLoss. Differs in gathering one side at once
    and walking over tiles.
    """

    direction = "symmetric"
    takes_16_bits = True
    crosses_ranks = "features of one side and negatives, with gradient; keys"
    paper = "Zhai et al. 2023, arXiv:2303.15343"
    formula = (
        r"L = \frac{1}{N} \left[ \sum_{i,j} \log\left(1 + e^{Z_{ij}}\right) - \sum_i"
        r" Z_{ii} \right], \quad Z_{ij} = s \cos(x_i, y_j) + b"
    )

    bias: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive | Literal["from towers"] = 10.0,
        logit_bias: float = -10.0,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
        positives: str = "diagonal",
        positive_weight: Probability = 1.0,
        grade: str | None = None,
        negatives_of: Literal["batch", "own"] = "batch",
    ) -> None:
        super().__init__(
            logit_scale=logit_scale,
            learnable=learnable,
            max_logit_scale=max_logit_scale,
            positives=positives,
            positive_weight=positive_weight,
            grade=grade,
            negatives_of=negatives_of,
        )
        self.add_scalar("bias", logit_bias)

    @torch.no_grad()
    def start_from(self, scale: float, bias: float | None) -> None:
        super().start_from(scale, bias)
        if bias is not None:
            self.bias.fill_(bias)

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        *,
        caption_keys: Int[Tensor, "B"] | None = None,
        labels: Int[Tensor, "B"] | None = None,
        columns: Mapping[str, Tensor] | None = None,
        negatives: Sequence[Negatives] = (),
    ) -> Float[Tensor, ""]:
        matching = self.matching(caption_keys, labels, columns)
        loss = blocked_siglip(student, teacher, self.scale, self.bias, matching)
        for each in self.against(student, teacher, negatives, self.bias):
            if each is not None:
                loss = loss + (each.sum() / len(student)).to(loss.dtype)
        return loss
