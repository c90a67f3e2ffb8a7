from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vlkd_cli.data.caption_choice import Sources, checked_weights, chosen
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.errors import DataError


def frequencies(of_captions: list[int], weights: list[float]) -> list[float]:
    choices = (hashed(0, np.arange(20_000)) >> np.uint64(1)).tolist()
    counts = Counter(chosen(choice, Sources(of_captions, weights)) for choice in choices)
    return [counts[place] / 20_000 for place in range(len(of_captions))]


def test_sources_are_chosen_by_their_weights_and_captions_of_one_source_alike() -> None:
    assert frequencies([0, 1, 2], [1, 2, 2]) == pytest.approx([0.2, 0.4, 0.4], abs=0.015)
    assert frequencies([0, 0, 1], [2, 1]) == pytest.approx([1 / 3] * 3, abs=0.015)


def test_an_empty_source_gives_way_to_the_next_and_the_last_to_the_first() -> None:
    assert frequencies([1, 2], [1, 2, 2]) == pytest.approx([0.6, 0.4], abs=0.015)
    assert frequencies([0, 1], [1, 2, 2]) == pytest.approx([0.6, 0.4], abs=0.015)
    assert frequencies([2], [1, 2, 2]) == [1]


@pytest.mark.parametrize(
    ("weights", "count", "message"),
    [
        ([1.0], 1, "has no effect: it weighs several sources"),
        ([1.0, 2.0], 3, "has 2 weights, and data.caption names 3"),
        ([1.0, 0.0], 2, "each weight must be a number above 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: list[float], count: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        checked_weights(weights, count)
