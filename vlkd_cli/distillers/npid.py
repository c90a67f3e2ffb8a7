"""Instance discrimination against a bank of every sample's feature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlkd_cli.distillers.anchors import anchor_contrast
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_without_grad, mean_without_grad
from vlkd_cli.recipe.types import Positive, PositiveInt, Probability, Progress


class NPID(Distiller):
    """Instance discrimination with a memory bank `[num_rows, D]` of one row for each sample.

    "nce": P = exp(f . row / temperature) / Z, with Z = num_rows * mean exp of the first step,
    fixed from then on; L = -log h(own) - sum log(1 - h(negative)) with h(P) = P / (P + K /
    num_rows). "softmax": cross-entropy of the own row against the negatives. After the step the
    rows of the batch move towards their features. Negatives are one set for each step, shared by
    all rows of all ranks, so they are gathered once; the own row may be among them.

    Args:
        estimator: "nce" or "softmax".
        num_negatives: rows sampled from the bank for each step; null takes the whole bank, for
            softmax.
        temperature: divides the cosines.
        momentum: fraction of a bank row that is replaced by the new feature.

    Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
    CVPR 2018, arXiv:1805.01978, equations 2, 4 and 7; zhirongw/lemniscate.pytorch. Differs in
    sharing the negatives of a step.
    """

    direction = "one_way"
    crosses_ranks = "features and indices that enter the bank"
    paper = "Wu et al., CVPR 2018, arXiv:1805.01978"
    formula = (
        r"L = -\frac{1}{N} \sum_i \left[ \log h_{ii} + \sum_{j \in K} \log(1 - h_{ij}) \right],"
        r" \quad h_{ij} = \frac{P_{ij}}{P_{ij} + |K| / n},"
        r" \quad P_{ij} = \frac{1}{Z} e^{\hat{f}_i \cdot m_j / \tau}"
    )
    excludes_by_key: ClassVar[Mapping[str, Mapping[object, Mapping[str, object]]]] = {
        "estimator": {"nce": {"num_negatives": None}},
    }

    bank: Tensor
    normalizer: Tensor

    def __init__(
        self,
        *,
        estimator: Literal["nce", "softmax"] = "nce",
        num_negatives: PositiveInt | None = 4096,
        temperature: Positive = 0.07,
        momentum: Probability = 0.5,
    ) -> None:
        super().__init__()
        self.estimator, self.num_negatives = estimator, num_negatives
        self.temperature, self.momentum = temperature, momentum

    def setup(  # type: ignore[override]  # see `Distiller.setup`
        self, student: Widths, teacher: Widths | None, *, num_rows: int
    ) -> None:
        assert isinstance(student, int)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("bank", unit(torch.randn(num_rows, student, generator=generator)))
        self.register_buffer("normalizer", torch.zeros(()))

    def forward(
        self,
        student: Float[Tensor, "B D"],
        *,
        indices: Int[Tensor, " B"],
        progress: Progress = Progress(),
    ) -> Float[Tensor, ""]:
        features = unit(student)
        bank = self.bank.to(features.dtype)
        own = bank[indices]
        if self.num_negatives is None:
            self.stage(features, indices)
            return anchor_contrast(
                features, own, bank, temperature=self.temperature, adds_positive=False
            )
        others = bank[self.sampled(progress.step)]
        positive = (features * own).sum(dim=1) / self.temperature
        negative = features @ others.T / self.temperature
        if self.estimator == "softmax":
            self.stage(features, indices)
            logits = torch.cat([positive[:, None], negative], dim=1)
            return (logits.logsumexp(dim=1) - positive).mean()
        if self.normalizer > 0:
            self.stage(features, indices)
            return nce(positive, negative, self.normalizer.to(bank.dtype), len(bank))
        products = torch.cat([positive[:, None], negative], dim=1).detach()
        estimate = len(bank) * mean_without_grad(products.exp().mean())
        self.stage(features, indices, estimate)
        return nce(positive, negative, estimate, len(bank))

    def sampled(self, step: int) -> Int[Tensor, " K"]:
        """Rows of the bank that are negatives in a step, the same on every rank."""
        assert self.num_negatives is not None
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(self.bank), (self.num_negatives,), generator=generator)
        return rows.to(self.bank.device)

    def commit(self, progress: Progress) -> None:
        staged = self.take_staged()
        if not staged:
            return
        # Rows in the order of the data, so that batches of one step are one batch.
        every = torch.cat([gather_without_grad(features) for features, *_ in staged])
        rows = torch.cat([gather_without_grad(indices) for _, indices, *_ in staged])
        mixed = self.bank[rows] * (1 - self.momentum) + every * self.momentum
        # A sample that comes twice counts with its later row, on any device.
        last = torch.zeros(len(self.bank), dtype=torch.int64, device=rows.device)
        last.scatter_reduce_(0, rows, torch.arange(len(rows), device=rows.device), "amax")
        seen = rows.unique()
        self.bank[seen] = unit(mixed)[last[seen]].to(self.bank.dtype)
        estimates = [estimate for _, _, *more in staged for estimate in more]
        if estimates and self.normalizer == 0:
            self.normalizer.copy_(torch.stack(estimates).mean())


def nce(
    positive: Float[Tensor, " B"],
    negative: Float[Tensor, "B K"],
    normalizer: Float[Tensor, ""],
    num_rows: int,
) -> Float[Tensor, ""]:
    """Noise-contrastive estimate of the own row against K sampled ones.

    Args:
        positive, negative: logits.
        normalizer: Z, what exp(logit) is divided by.
        num_rows: of the bank.

    Source: arXiv:1805.01978, equation 7; the constant 1e-7 is the authors' code's.
    """
    noise = negative.shape[1] / num_rows
    found = positive.exp() / normalizer
    others = negative.exp() / normalizer
    hit = (found / (found + noise + 1e-7)).log()
    miss = (noise / (others + noise + 1e-7)).log().sum(dim=1)
    return -(hit + miss).mean()
