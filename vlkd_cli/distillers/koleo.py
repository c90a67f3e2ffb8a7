"""Spread of features by the distance to the nearest neighbor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather
from vlkd_cli.distributed.runtime import rank


class KoLeo(Distiller):
    """Push every row away from its nearest neighbor: -mean log(distance + 1e-8), rows of length 1.

    Source: Sablayrolles et al., Spreading vectors for similarity search, ICLR 2019,
    arXiv:1806.03198, equation 2, as DINOv2 uses it (arXiv:2304.07193). Differs in looking for
    neighbors among the rows of all ranks.
    """

    direction = "one_way"
    crosses_ranks = "rows with gradient"
    minimum_batch = 2
    paper = "Sablayrolles et al., ICLR 2019, arXiv:1806.03198"
    formula = (
        r"L = -\frac{1}{N} \sum_i \log \left( \min_{j \neq i} \|\hat{x}_i - \hat{x}_j\|"
        r" + 10^{-8} \right), \quad \hat{x} = \frac{x}{\|x\|}"
    )

    def forward(self, student: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        own = unit(student)
        every = gather(own)
        with torch.no_grad():
            cosines = own @ every.T
            cosines.diagonal(rank() * len(own)).fill_(-torch.inf)
            nearest = cosines.argmax(dim=1)
        # A length has no gradient at 0; duplicates then stay where they are.
        squares = (own - every[nearest]).square().sum(dim=1)
        apart = squares > 0
        distances = squares.masked_fill(~apart, 1).sqrt() * apart
        return -(distances + 1e-8).log().mean()
