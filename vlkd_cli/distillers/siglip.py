"""The sigmoid loss of SigLIP."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.blocked_contrast import blocked_siglip
from vlkd_cli.distillers.distiller import Context, Distiller
from vlkd_cli.distillers.similarity import add_log_scale, clamp_log_scale
from vlkd_cli.recipe.types import Positive


class SigLIP(Distiller):
    """Every pair of the batch is judged on its own: matching or not.

    L = (1/N) [sum_ij softplus(Z_ij) - sum_i Z_ii] with Z = scale * cos(student, teacher) + bias;
    the division is by N, not N^2. Both sides are normalised here and both learn, unless one is
    frozen.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm).
        logit_bias: initial bias of the logits.
        learnable: whether scale and bias are trained; the scale then stays within [1,
            max_logit_scale] after each step.
        max_logit_scale: highest scale; null leaves it unbounded, as fine-tuning weights whose scale
            is above 100 needs.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv:2303.15343,
    equation 1; open_clip, src/open_clip/loss.py:SigLipLoss. Differs in gathering one side at once
    and walking over tiles.
    """

    direction = "symmetric"
    needs = frozenset({"equal_width"})
    crosses_ranks = "features of one side, with gradient"
    paper = "Zhai et al. 2023, arXiv:2303.15343"

    log_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive = 10.0,
        logit_bias: float = -10.0,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
    ) -> None:
        super().__init__()
        self.max_logit_scale = max_logit_scale
        self.learnable = learnable
        add_log_scale(self, logit_scale, learnable)
        bias = torch.tensor(float(logit_bias))
        if learnable:
            self.bias = nn.Parameter(bias)
        else:
            self.register_buffer("bias", bias)

    def forward(
        self,
        student: Float[Tensor, "B D"],
        teacher: Float[Tensor, "B D"],
        context: Context | None = None,
    ) -> Float[Tensor, ""]:
        return blocked_siglip(student, teacher, self.log_scale.exp(), self.bias)

    def commit(self, step: int) -> None:
        if self.learnable:
            clamp_log_scale(self.log_scale, self.max_logit_scale)
