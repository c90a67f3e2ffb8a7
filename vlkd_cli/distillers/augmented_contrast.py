"""CLIP-KD's fifth term: contrast of the student's features joined with the teacher's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.distiller import Widths, widths_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.distillers.similarity import Pair, unit
from vlkd_cli.recipe.types import Positive


class AugmentedContrast(ScaledDistiller):
    """Each modality's student and teacher features are joined and mapped to the student's width;
    the pairs are then contrasted as in InfoNCE, with a factor of their own.

    With x, y the student's and u, v the teacher's unit features, a = unit(A [x, u]) and b =
    unit(B [y, v]); L = InfoNCE(a, b). A and B are trained and then thrown away.

    Source: Yang et al., CLIP-KD, arXiv:2307.12732, section 3.6 (AFD); winycg/CLIP-KD,
    src/open_clip/loss.py:KDClipLoss. Differs in working for students and teachers of unlike width.
    """

    direction = "one_way"
    minimum_batch = 2
    crosses_ranks = "joined features of one modality, with gradient"
    paper = "Yang et al. 2024, arXiv:2307.12732"
    formula = (
        r"L = L_{\mathrm{InfoNCE}}(Z), \quad Z_{ij} = s \cos(a_i, b_j),"
        r" \quad a_i = A [\hat{x}_i, \hat{u}_i] + c, \quad b_i = B [\hat{y}_i, \hat{v}_i] + d,"
        r" \quad \hat{x} = \frac{x}{\|x\|}"
    )

    fusions: nn.ModuleList

    def __init__(
        self,
        *,
        logit_scale: Positive = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
    ) -> None:
        super().__init__(
            logit_scale=logit_scale, learnable=learnable, max_logit_scale=max_logit_scale
        )

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert teacher is not None
        # The same start on every rank, whatever its random state.
        generator = torch.Generator().manual_seed(0)
        self.fusions = nn.ModuleList()
        for ours, theirs in zip(widths_of(student), widths_of(teacher), strict=True):
            fusion = nn.Linear(ours + theirs, ours)
            bound = (ours + theirs) ** -0.5
            nn.init.uniform_(fusion.weight, -bound, bound, generator=generator)
            nn.init.zeros_(fusion.bias)
            self.fusions.append(fusion)

    def forward(self, student: Pair, teacher: Pair) -> Float[Tensor, ""]:
        image, text = (
            fusion(torch.cat([unit(ours), unit(theirs.detach())], dim=1))
            for fusion, ours, theirs in zip(self.fusions, student, teacher, strict=True)
        )
        return blocked_infonce(image, text, self.scale)
