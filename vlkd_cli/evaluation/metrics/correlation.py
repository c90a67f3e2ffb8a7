"""Similarities of pairs of vectors, and how they agree with human scores."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
SIMILARITIES: tuple[Similarity, ...] = ("cosine", "dot", "euclidean", "manhattan")

Floats = NDArray[np.floating]


def pair_similarity(
    first: Floats, second: Floats, kind: Similarity = "cosine"
) -> NDArray[np.float64]:
    """Similarity of the rows of two tables, in float64; distances are negated, so that larger
    always means closer.

    A NaN in a vector counts as 0. The cosine with a vector of zeros, or with one too long for a
    number, is 0.

    Args:
        first: `[N, D]`.
        second: `[N, D]`.
    """
    left, right = (np.nan_to_num(table.astype(np.float64), nan=0.0) for table in (first, second))
    if kind == "euclidean":
        return np.asarray(-np.linalg.norm(left - right, axis=1))
    if kind == "manhattan":
        return np.asarray(-np.abs(left - right).sum(axis=1))
    with np.errstate(over="ignore", invalid="ignore"):
        products = (left * right).sum(axis=1)
        if kind == "dot":
            return np.asarray(products)
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    rows: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.nan_to_num(cosines, nan=0.0)
    return rows


def pearson(scores: Floats, gold: Floats) -> float:
    """Pearson's correlation; NaN if one side has a single value only, since the correlation is
    then undefined."""
    if len(scores) < 2 or _is_constant(scores) or _is_constant(gold):
        return float("nan")
    from scipy.stats import pearsonr

    return float(pearsonr(scores, gold).statistic)


def spearman(scores: Floats, gold: Floats) -> float:
    """Spearman's rank correlation with average ranks for ties; NaN as for `pearson`."""
    if len(scores) < 2 or _is_constant(scores) or _is_constant(gold):
        return float("nan")
    from scipy.stats import spearmanr

    return float(spearmanr(scores, gold).statistic)


def _is_constant(values: Floats) -> bool:
    return bool((values == values[0]).all())
