"""The contrastive loss of CLIP."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.distiller import Context, Distiller
from vlkd_cli.distillers.similarity import add_log_scale, clamp_log_scale
from vlkd_cli.recipe.types import Positive


class InfoNCE(Distiller):
    """Softmax contrast of matching pairs against all other pairs of the batch, in both directions.

    L = (CE_diag(Z) + CE_diag(Z^T)) / 2 with Z = scale * cos(student, teacher). Both sides are
    normalised here and both learn, unless one is
    frozen. A batch of one pair has nothing to contrast: its loss and gradient are 0.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm).
        learnable: whether the scale is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest scale; null leaves it unbounded.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    ICML 2021, arXiv:2103.00020, figure 3; open_clip, src/open_clip/loss.py:ClipLoss, with
    local_loss and gather_with_grad. Differs in that only one side travels between ranks, and in
    that large similarity matrices are computed in tiles and never held.
    """

    direction = "symmetric"
    needs = frozenset({"equal_width"})
    crosses_ranks = "features of one side, with gradient; one number per column"
    paper = "Radford et al. 2021, arXiv:2103.00020"

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
        return blocked_infonce(student, teacher, self.log_scale.exp())

    def commit(self, step: int) -> None:
        if self.learnable:
            clamp_log_scale(self.log_scale, self.max_logit_scale)
