"""BM25: hand-computed scores, exact lists, and what counts as a word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.conftest import SHARED
from vlkd_cli.data.files.passage_table import PassageTable
from vlkd_cli.data.files.passages import open_collection, read_judgments
from vlkd_cli.evaluation.metrics.ranking import ranking_metrics
from vlkd_cli.synthesis.bm25 import BM25Index, words_of

PASSAGES = ["Red fox, red FOX", "the fox sleeps", "", "a dog"]


def test_words_are_runs_of_letters_and_digits_after_lower_casing() -> None:
    assert words_of("Mach-3 flow (AT 10%), naïve") == ["mach", "3", "flow", "at", "10", "na", "ve"]


def test_scores_are_those_computed_by_hand() -> None:
    index = BM25Index(PASSAGES, k1=0.9, b=0.4)
    idf = {"red": math.log(1 + 3.5 / 1.5), "fox": math.log(1 + 2.5 / 2.5)}
    mean = (4 + 3 + 0 + 2) / 4

    def part(word: str, count: int, length: int) -> float:
        return idf[word] * count * 1.9 / (count + 0.9 * (0.6 + 0.4 * length / mean))

    expected = [part("red", 2, 4) + part("fox", 2, 4), part("fox", 1, 3), 0, 0]
    np.testing.assert_allclose(index.scores("red fox unicorn"), expected, rtol=1e-12)
    np.testing.assert_allclose(index.scores("fox fox"), 2 * index.scores("fox"), rtol=1e-12)
    assert not index.scores("?!").any() and not BM25Index([]).scores("fox").any()


def test_lists_hold_passages_that_share_a_word_and_ties_go_to_the_larger_key() -> None:
    index = BM25Index(["x a", "x b", "y", "x c"])
    keys = np.array([0, 3, 1, 2])
    assert index.best("x", 10, keys).tolist() == [1, 3, 0]
    assert index.best("x", 2, keys).tolist() == [1, 3]
    assert index.best("z", 2, keys).tolist() == []


@pytest.mark.shared
def test_cranfield_is_searched_as_well_as_the_reference_does() -> None:
    root = SHARED / "data" / "retrieval" / "cranfield"
    table = PassageTable(collection := open_collection(root, None))
    passages, names = table.passages, [table.queries.id_of(n) for n in range(len(table.queries))]
    index = BM25Index(passages[place] for place in range(len(passages)))
    found = {
        name: [passages.id_of(at) for at in index.best(table.queries[n], 100, passages.keys)]
        for n, name in enumerate(names)
    }
    metrics = ranking_metrics(found, read_judgments(collection, set(names)), [10], gain="linear")
    assert metrics["ndcg@10"] == pytest.approx(0.471, abs=5e-4)
