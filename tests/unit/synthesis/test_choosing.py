"""Which mined passages become positives and negatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.choosing import choose
from vlkd_cli.synthesis.mining import NOTHING, Mined, merged


def spec(**keys: Any) -> SynthesisSpec:
    given = {"data": {}, "miners": ["bm25"], "scorers": [{"name": "bm25"}], "relations": 3}
    return SynthesisSpec.model_validate({**given, **keys})


def mined(*places: int) -> Mined:
    return Mined(np.array(places, dtype=np.int64), np.zeros(len(places), dtype=np.int64))


def test_lists_are_merged_round_robin_and_a_passage_counts_where_it_comes_first() -> None:
    lists = [np.array([4, 7, 1]), np.array([7, 2, NOTHING]), np.array([4, 9, 7])]
    found = merged(lists)
    assert found.passages.tolist() == [4, 7, 2, 9, 1]
    assert found.miners.tolist() == [0, 1, 1, 2, 0]
    assert merged([np.array([NOTHING])]).passages.tolist() == []


def test_the_first_passage_is_the_positive_and_top_takes_the_next_ones() -> None:
    chosen = choose(mined(5, 3, 8, 1), 0, spec(sampling="top"))
    assert chosen.positives.tolist() == [5] and chosen.negatives.tolist() == [1, 2]


def test_random_takes_the_smallest_hashes_in_the_order_of_the_list() -> None:
    places = np.arange(10, 40)
    chosen = choose(mined(*places), 6, spec(relations=6, seed=9))
    smallest = np.argsort(hashed(9, 6, places[1:]))[:5] + 1
    assert chosen.negatives.tolist() == sorted(smallest.tolist())
    assert choose(mined(*places), 7, spec(relations=6, seed=9)).negatives.tolist() != (
        chosen.negatives.tolist()
    )


def test_judged_passages_are_positives_and_never_negatives() -> None:
    judged = {8: 2.0, 3: 1.0, 99: 2.0, 1: 0.0}
    chosen = choose(mined(5, 3, 8, 1), 0, spec(sampling="top"), judged, min_grade=2)
    assert chosen.positives.tolist() == [8, 99]
    # 3 answers too, a little; 1 is judged not to.
    assert chosen.negatives.tolist() == [0, 3]
    assert choose(mined(5, 3), 0, spec(), {}, 1).positives.tolist() == []


def test_a_short_list_gives_what_it_has() -> None:
    assert choose(mined(5, 3), 0, spec()).negatives.tolist() == [1]
    assert choose(mined(5), 0, spec()).negatives.tolist() == []
    assert choose(mined(), 0, spec()).positives.tolist() == []
