"""Classification of positions by a tokenizer's codes."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller


class Codes(Distiller):
    """Cross-entropy of the student's logits to the teacher's most likely code, row by row or
    position by position.

    Source: Bao et al., BEiT, ICLR 2022, arXiv:2106.08254, equation 2; Chen et al., CAE, IJCV 2023,
    arXiv:2202.03026, equation 1.
    """

    direction = "one_way"
    crosses_ranks = "nothing"
    paper = "Bao et al., ICLR 2022, arXiv:2106.08254"
    formula = (
        r"L = -\frac{1}{N} \sum_i \log \frac{e^{s_{i a_i}}}{\sum_k e^{s_{ik}}},"
        r" \quad a_i = \mathrm{argmax}_k \, t_{ik}"
    )

    def forward(
        self, student: Float[Tensor, "... D"], teacher: Float[Tensor, "... D"]
    ) -> Float[Tensor, ""]:
        answers = teacher.argmax(dim=-1).flatten()
        return F.cross_entropy(student.flatten(0, -2), answers)
