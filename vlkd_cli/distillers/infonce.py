"""The contrastive loss of CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.negatives import Negatives
from vlkd_cli.distillers.pair_contrast import PairContrast


class InfoNCE(PairContrast):
    """Softmax contrast of matching pairs against all other pairs of the batch, in both directions.

    L = (CE_diag(Z) + CE_diag(Z^T)) / 2 with Z = scale * cos(student, teacher). Both sides are
    L2-normalized here and both learn, unless one is frozen.

    With `positives`, CE's target is spread over all matching pairs, W by its row sums: the mean of
    their log-probabilities, as SupCon's L_out (arXiv:2004.11362, equation 2).

    `negatives` of the recipe are further columns of Z in the direction that looks for their kind:
    hard texts for pictures, hard pictures for texts, those of all ranks. A negative text equal to a
    row's own caption is left out there, and so are empty ones.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    ICML 2021, arXiv:2103.00020, figure 3; open_clip, src/open_clip/loss.py:ClipLoss, with
    local_loss and gather_with_grad. Differs in that only one side travels between ranks, and in
    that large similarity matrices are computed in tiles and never held.
    """

    direction = "symmetric"
    takes_16_bits = True
    minimum_batch = 2
    crosses_ranks = "features of one side and negatives, with gradient; a number per column; keys"
    paper = "Radford et al. 2021, arXiv:2103.00020"
    formula = (
        r"L = -\frac{1}{2N} \sum_{i=1}^{N} \left[ \log \frac{e^{Z_{ii}}}{\sum_j"
        r" e^{Z_{ij}}} + \log \frac{e^{Z_{ii}}}{\sum_j e^{Z_{ji}}} \right], \quad Z_{ij} ="
        r" s \cos(x_i, y_j)"
    )

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
        extra = self.against(student, teacher, negatives)
        return blocked_infonce(student, teacher, self.scale, matching, extra)
