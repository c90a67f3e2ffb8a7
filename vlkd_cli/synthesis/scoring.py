"""Scores of pairs: those of several scorers, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.errors import DataError
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.scorers.scorer import Pairs, Scorer
from vlkd_cli.synthesis.sources import Sources


class Weighted(NamedTuple):
    """A scorer with its name, the factor on its scores, and whether they are scaled for each
    query."""

    name: str
    scorer: Scorer
    weight: float
    standardize: bool


def open_scorers(spec: SynthesisSpec, sources: Sources) -> list[Weighted]:
    """The scorers of a recipe, ready to score.

    Raises:
        UserError: one cannot be loaded.
    """
    several = len(spec.scorers) > 1
    found = []
    for entry in spec.scorers:
        scorer: Scorer = make("scorer", entry.name, entry.keys)
        scorer.open(sources)
        scaled = several if entry.standardize is None else entry.standardize
        found.append(Weighted(entry.name, scorer, entry.weight, scaled))
    return found


def needs_whole_lists(scorers: Sequence[Weighted]) -> bool:
    """Whether passages are scored that no relation uses, to scale the others by."""
    return any(each.standardize for each in scorers)


def scores_of(
    scorers: Sequence[Weighted], pairs: Sequence[Pairs], mined: Sequence[NDArray[np.bool_]]
) -> list[NDArray[np.float64]]:
    """The weighted sum of all scorers for each passage of each query, float64.

    Args:
        mined: for each query, which of its passages were mined; scores are scaled over these.

    Raises:
        DataError: a score is not finite.
    """
    totals = [np.zeros(len(own.passages)) for own in pairs]
    for name, scorer, weight, standardize in scorers:
        for total, scores, listed in zip(totals, scorer.scores(pairs), mined, strict=True):
            if not np.isfinite(scores).all():
                raise DataError(
                    f"scorer '{name}' gives scores that are NaN or infinite. Choose other weights,"
                    " or `--set train.precision=fp32`."
                )
            total += weight * (_standardized(scores, listed) if standardize else scores)
    return totals


def _standardized(scores: NDArray[np.float64], listed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores with mean 0 and deviation 1 over the mined passages; all 0 where these are equal."""
    own = scores[listed]
    deviation = float(own.std())
    # Scores that differ only by rounding carry no information.
    if deviation <= 1e-12 * max(float(np.abs(own).max()), 1.0):
        return np.zeros_like(scores)
    scaled: NDArray[np.float64] = (scores - own.mean()) / deviation
    return scaled
