"""Classification of which picture of a sample an output belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller


class ViewOrder(Distiller):
    """Classify the pictures of a sample by their order: the class of the v-th of V outputs `[B,
    V]` is v.

    With augmentation `quarter_turns` this is rotation prediction; with `patch_grid` and a head that
    also reads the first picture, the relative location of patches.

    Source: Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations,
    ICLR 2018, arXiv:1803.07728, equation 2; Doersch et al., ICCV 2015, arXiv:1505.05192.
    """

    direction = "one_way"
    classifies_pictures = True
    crosses_ranks = "nothing"
    paper = "Gidaris et al., ICLR 2018, arXiv:1803.07728"
    formula = (
        r"L = -\frac{1}{NV} \sum_i \sum_{v=1}^{V}"
        r" \log \frac{e^{s_{ivv}}}{\sum_{k=1}^{V} e^{s_{ivk}}}"
    )

    def forward(self, student: Sequence[Float[Tensor, "B V"]]) -> Float[Tensor, ""]:
        logits = torch.stack(list(student))
        answers = torch.arange(len(logits), device=logits.device)
        answers = answers.repeat_interleave(logits.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), answers)
