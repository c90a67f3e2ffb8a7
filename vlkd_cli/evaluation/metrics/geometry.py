"""How features lie on the sphere: spread, gap and spectrum. Pairs are taken in blocks, never all at
once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK_ROWS = 1024


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean squared distance of matching rows; 0 is best.

    Source: Wang and Isola, ICML 2020, arXiv:2005.10242, alpha 2.
    """
    return (one - other).double().square().sum(1).mean().item()


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of different rows of exp(-2 squared distance); 0 is a point, lower
    is more spread.

    Args:
        features: `[N, D]` of unit length, N at least 2.

    Source: Wang and Isola 2020, t 2.
    """
    total = 0.0
    for start in range(0, len(features), BLOCK_ROWS):
        cosine = (features[start : start + BLOCK_ROWS] @ features.T).double()
        total += torch.exp(4 * cosine - 4).sum().item()
    rows = len(features)
    # Every row with itself has distance 0 and counts 1.
    return math.log(max(total - rows, 1e-300) / (rows * (rows - 1)))


def mean_positive_cosine(features: Tensor) -> float:
    """Mean of those pairwise cosines that are above 0, every row with itself included; 0 where all
    rows are zero.

    Source: ProtoCLIP analyze_features.py.
    """
    total, count = 0.0, 0
    for start in range(0, len(features), BLOCK_ROWS):
        cosine = features[start : start + BLOCK_ROWS] @ features.T
        positive = cosine > 0
        total += torch.where(positive, cosine, 0).double().sum().item()
        count += int(positive.sum())
    return total / max(count, 1)


def modality_gap(one: Tensor, other: Tensor) -> float:
    """Distance between the mean features of two modalities.

    Source: Liang et al., NeurIPS 2022, arXiv:2203.02053.
    """
    gap = one.double().mean(0) - other.double().mean(0)
    return float(gap.norm())


def mean_deviation(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation over rows (unbiased, as torch has it)."""
    return features.double().std(0).mean().item()


def spectrum(features: Tensor) -> Tensor:
    """Fractions of variance along the principal axes, in falling order, `[D]`."""
    centered = features.double() - features.double().mean(0)
    values = torch.linalg.eigvalsh(centered.T @ centered).flip(0).clamp(min=0)
    shares: Tensor = values / values.sum().clamp(min=1e-300)
    return shares


def effective_rank(shares: Tensor) -> float:
    """Exponential of the entropy of the singular values' shares.

    Args:
        shares: of variance, as `spectrum` gives them.

    Source: Roy and Vetterli, EUSIPCO 2007.
    """
    singular = shares.sqrt()
    singular = singular / singular.sum().clamp(min=1e-300)
    return math.exp(float(-(singular * singular.clamp(min=1e-300).log()).sum()))
