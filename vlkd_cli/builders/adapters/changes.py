"""Changes of single weights as parametrizations: a module's weight is the sum or product that a
method defines, wherever the network reads it, and the base weight is never written."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Part(NamedTuple):
    """A weight that a method changes.

    Args:
        module: its module's name.
        tensor: its name in the module.
        rows: which rows of a fused weight belong to the targets; None: all.
        inputs: whether a method that scales outputs scales this one's inputs instead.
    """

    module: str
    tensor: str = "weight"
    rows: Tensor | None = None
    inputs: bool = False


class Change(nn.Module):
    """Base: `forward` gives the changed weight.

    Args:
        weight: the base weight, `[out, ...]`.
        rows: `[out]` bool, the rows that change; None: all.
    """

    vlkd_rows: Tensor | None

    def __init__(self, weight: Tensor, rows: Tensor | None) -> None:
        super().__init__()
        column = None if rows is None else rows.view(-1, 1).to(weight.device)
        self.register_buffer("vlkd_rows", column, persistent=False)

    def of_rows(self, changed: Tensor, base: Tensor) -> Tensor:
        """The changed weight in the rows that change, both `[out, -1]`."""
        return changed if self.vlkd_rows is None else torch.where(self.vlkd_rows, changed, base)

    def learned(self, *shape: int, like: Tensor) -> nn.Parameter:
        """A parameter of zeros."""
        return nn.Parameter(torch.zeros(*shape, dtype=like.dtype, device=like.device))


class LowRank(Change):
    """W' = W + scale * B A; of convolutions A has the kernel and B is 1 x 1.

    A starts as peft's, uniform as a linear layer's weight, B at 0.

    Source: Hu et al., LoRA, arXiv:2106.09685, section 4.1; peft, tuners/lora/layer.py.
    """

    def __init__(self, weight: Tensor, rows: Tensor | None, *, rank: int, scale: float) -> None:
        super().__init__(weight, rows)
        self.scale = scale
        self.vlkd_a = self.learned(rank, weight[0].numel(), like=weight)
        self.vlkd_b = self.learned(len(weight), rank, like=weight)
        nn.init.kaiming_uniform_(self.vlkd_a, a=math.sqrt(5))

    def added(self) -> Tensor:
        """Scale * B A, `[out, -1]`."""
        outer = self.vlkd_b if self.vlkd_rows is None else self.vlkd_b * self.vlkd_rows
        return self.scale * (outer @ self.vlkd_a)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.added().view_as(weight)


class Decomposed(LowRank):
    """W' = m * V / ||V|| with V = W + scale * B A, by rows; the norm takes no gradient, m starts as
    the norm of W's rows.

    Source: Liu et al., DoRA, arXiv:2402.09353, equation 5 and section 4.3.
    """

    def __init__(self, weight: Tensor, rows: Tensor | None, *, rank: int, scale: float) -> None:
        super().__init__(weight, rows, rank=rank, scale=scale)
        self.vlkd_m = nn.Parameter(weight.detach().flatten(1).norm(dim=1, keepdim=True).clone())

    def forward(self, weight: Tensor) -> Tensor:
        base = weight.flatten(1)
        direction = base + self.added()
        # A row of zeros has no direction.
        norm = direction.norm(dim=1, keepdim=True).detach().clamp_min(1e-12)
        return self.of_rows(direction * (self.vlkd_m / norm), base).view_as(weight)


class Vectors(Change):
    """W' = W + diag(b) B diag(d) A with random A and B that never change; b starts at 0.

    Args:
        matrices: A `[rank, in]` and B `[out, rank]`, shared by all weights of this shape.

    Source: Kopiczko et al., VeRA, arXiv:2310.11454, equation 2.
    """

    vlkd_fixed_a: Tensor
    vlkd_fixed_b: Tensor

    def __init__(
        self,
        weight: Tensor,
        rows: Tensor | None,
        *,
        matrices: tuple[Tensor, Tensor],
        initial_scale: float,
    ) -> None:
        super().__init__(weight, rows)
        self.register_buffer("vlkd_fixed_a", matrices[0])
        self.register_buffer("vlkd_fixed_b", matrices[1])
        self.vlkd_d = self.learned(len(matrices[0]), 1, like=weight)
        self.vlkd_b = self.learned(len(weight), 1, like=weight)
        nn.init.constant_(self.vlkd_d, initial_scale)

    def forward(self, weight: Tensor) -> Tensor:
        outer = self.vlkd_b if self.vlkd_rows is None else self.vlkd_b * self.vlkd_rows
        return weight + outer * (self.vlkd_fixed_b @ (self.vlkd_d * self.vlkd_fixed_a))


class Factors(Change):
    """W' = f W by rows, or by inputs; f starts at 1.

    Args:
        inputs: one factor for each input channel instead of each row.

    Source: Liu et al., IA3, arXiv:2205.05638, section 3.3.
    """

    def __init__(self, weight: Tensor, rows: Tensor | None, *, inputs: bool = False) -> None:
        super().__init__(weight, rows)
        self.inputs = inputs
        self.vlkd_f = self.learned(weight.shape[1] if inputs else len(weight), like=weight)
        nn.init.ones_(self.vlkd_f)

    def forward(self, weight: Tensor) -> Tensor:
        if self.inputs:
            return weight * self.vlkd_f.view(1, -1, *[1] * (weight.ndim - 2))
        base = weight.flatten(1)
        return self.of_rows(self.vlkd_f.view(-1, 1) * base, base).view_as(weight)


class BiasFactors(nn.Module):
    """The bias of an output that is scaled, by the factors of its weight.

    Args:
        of: `[out]` bool, the rows of the weight whose bias it is; None: all.
    """

    vlkd_of: Tensor

    def __init__(self, factors: Factors, of: Tensor | None = None) -> None:
        super().__init__()
        # In a tuple, so that they have one name.
        self._factors = (factors,)
        own = torch.ones(len(factors.vlkd_f), dtype=torch.bool) if of is None else of
        places = own.nonzero()[:, 0].to(factors.vlkd_f.device)
        self.register_buffer("vlkd_of", places, persistent=False)

    def forward(self, bias: Tensor) -> Tensor:
        (factors,) = self._factors
        scaled = factors.vlkd_f[self.vlkd_of] * bias
        rows = factors.vlkd_rows
        return scaled if rows is None else torch.where(rows[self.vlkd_of, 0], scaled, bias)


def fixed_matrices(shape: torch.Size, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """VeRA's A `[rank, in]` and B `[out, rank]` for weights of a shape, the same in every process.

    Initialized as in peft: uniform by He et al.'s bound.
    """
    generator = torch.Generator().manual_seed(seed)
    inner, outer = torch.empty(rank, shape[1]), torch.empty(shape[0], rank)
    for matrix in (inner, outer):
        nn.init.kaiming_uniform_(matrix, generator=generator)
    return inner, outer
