"""The sigmoid loss of SigLIP."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_siglip
from vlkd_cli.distillers.logit_scale import ScaledDistiller
from vlkd_cli.recipe.types import Positive


class SigLIP(ScaledDistiller):
    """Every pair of the batch is judged on its own: matching or not.

    L = (1/N) [sum_ij softplus(Z_ij) - sum_i Z_ii] with Z = scale * cos(student, teacher) + bias;
    the division is by N, not N^2. Both sides are L2-normalized here and both learn, unless one is
    frozen.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm); `from towers`: factor and
            bias that the dual encoder was trained to whose halves are compared.
        logit_bias: initial bias of the logits; without effect where the towers bring theirs.
        learnable: whether scale and bias are trained; the scale then stays within [1,
            max_logit_scale] after each step.
        max_logit_scale: highest scale; null leaves it unbounded, as fine-tuning weights whose scale
            is above 100 needs.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343,
    equation 1; open_clip, src/open_clip/loss.py:SigLipLoss. Differs in gathering one side at once
    and walking over tiles.
    """

    direction = "symmetric"
    crosses_ranks = "features of one side, with gradient"
    paper = "Zhai et al. 2023, arXiv:2303.15343"

    bias: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive | Literal["from towers"] = 10.0,
        logit_bias: float = -10.0,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )
        self.add_scalar("bias", logit_bias)

    @torch.no_grad()
    def start_from(self, scale: float, bias: float | None) -> None:
        super().start_from(scale, bias)
        if bias is not None:
            self.bias.fill_(bias)

    def forward(
        self, student: Float[Tensor, "B D"], teacher: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        return blocked_siglip(student, teacher, self.scale, self.bias)
