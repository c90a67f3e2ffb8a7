"""Which captions are preferred to others, and what chance would reach. A tie is never right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Hits = NDArray[np.bool_]
Which = Literal["all", "any"]


class Outcomes(NamedTuple):
    """Which items are right, `[N]`, and for which of them a tie decides that they are not."""

    right: Hits
    tied: Hits


def caption_outcomes(
    scores: Sequence[NDArray[np.float64]], num_right: Sequence[int], which: Which = "all"
) -> Outcomes:
    """An item is right if its right captions (`all` of them, or `any`) score strictly above every
    wrong one.

    Args:
        scores: of each item's captions, the right ones first.
        num_right: right captions of each item; at least one, and one wrong one.
    """
    pick = np.min if which == "all" else np.max
    own = np.array([pick(row[:n]) for row, n in zip(scores, num_right, strict=True)])
    best = np.array([np.max(row[n:]) for row, n in zip(scores, num_right, strict=True)])
    return Outcomes(own > best, own == best)


def chance_of_choice(right: int, wrong: int, which: Which = "all") -> float:
    """How often a random order is right: any one of the right captions comes first in right /
    (right + wrong) of all orders, all of them in one of the ways to choose the first ones."""
    if which == "any":
        return right / (right + wrong)
    return 1 / math.comb(right + wrong, right)


class PairOutcomes(NamedTuple):
    """Of examples with two images and two captions, `[N]` each; see `pair_outcomes`."""

    text: Hits
    image: Hits
    group: Hits
    tied: Hits


def pair_outcomes(scores: NDArray[np.float64]) -> PairOutcomes:
    """Winoground's three: `text`, each image prefers its own caption; `image`, each caption prefers
    its own image; `group`, both. `tied`: `text` or `image` is wrong by nothing but a tie.

    Args:
        scores: `[N, 2, 2]`, image by caption.

    Source: Thrush et al., Winoground, CVPR 2022, equations 1 to 3.
    """
    (s00, s01), (s10, s11) = scores.transpose(1, 2, 0)
    text = (s00 > s01) & (s11 > s10)
    image = (s00 > s10) & (s11 > s01)
    tied = ((s00 >= s01) & (s11 >= s10) & ~text) | ((s00 >= s10) & (s11 >= s01) & ~image)
    return PairOutcomes(text, image, text & image, tied)


PAIR_CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
"""Of four scores in random order."""
