"""What `caption_weights` of a reader may be, judged without opening any data."""

from __future__ import annotations

import math
from collections.abc import Sequence


def weights_problem(weights: Sequence[object], num_sources: int, key: str = "caption") -> str:
    """What is wrong with `caption_weights`, or nothing."""
    if num_sources < 2:
        return (
            f"has no effect: it weighs several sources of captions. Name them in data.{key}, or"
            " leave it out."
        )
    if len(weights) != num_sources:
        return (
            f"has {len(weights)} weights, and data.{key} names {num_sources}. Give one weight for"
            " each."
        )
    numbers = [each for each in weights if isinstance(each, int | float) and each is not True]
    if len(numbers) < num_sources or not all(0 < each < math.inf for each in numbers):
        return (
            f"is {list(weights)}; each weight must be a number above 0. Leave others out of"
            f" data.{key}."
        )
    return ""
