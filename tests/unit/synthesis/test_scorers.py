"""Every scorer of the catalogue: what it scores, and mistakes in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.passages import subject_of_rows, write_numbered
from vlkd_cli import catalog
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.schema import SynthesisSpec
from vlkd_cli.synthesis.bm25 import BM25Index
from vlkd_cli.synthesis.scorers.scorer import Pairs
from vlkd_cli.synthesis.scoring import open_scorers, scores_of
from vlkd_cli.synthesis.sources import Sources, open_sources

QUERIES, PASSAGES = np.array([[1.0, 0], [3, 4]]), np.array([[2.0, 0], [0, 5], [3, 4], [0, 0]])
PAIRS = [Pairs(1, np.array([2, 0, 1])), Pairs(0, np.array([0]))]


def opened(folder: Path, similarity: str = "cosine", *scorers: dict[str, Any]) -> Any:
    write_numbered(folder, queries=2, passages=4)
    spec = SynthesisSpec.model_validate(
        {
            "data": {"reader": "passages", "path": str(folder)},
            "miners": ["text_0"],
            "scorers": scorers or [{"name": "tower"}],
            "similarity": similarity,
        }
    )
    sources = open_sources(spec, subject_of_rows(QUERIES, [PASSAGES], folder / "cache"))
    return spec, sources


def scores_of_one(sources: Sources, name: str, **keys: Any) -> list[np.ndarray]:
    scorer = make("scorer", name, keys)
    scorer.open(sources)
    found = scorer.scores(PAIRS)
    assert [(own.dtype, len(own)) for own in found] == [(np.float64, 3), (np.float64, 1)]
    return found


def test_every_scorer_is_tested_here() -> None:
    assert catalog.names("scorer") == ["cross_encoder", "bm25", "tower"]


@pytest.mark.parametrize(("similarity", "first"), [("cosine", [1, 0.6, 0.8]), ("dot", [25, 6, 20])])
def test_a_tower_scores_by_its_similarity(
    similarity: str, first: list[float], tmp_path: Path
) -> None:
    _, sources = opened(tmp_path, similarity)
    found = scores_of_one(sources, "tower")
    np.testing.assert_allclose(found[0], first, rtol=1e-7)


def test_bm25_scores_as_its_index(tmp_path: Path) -> None:
    _, sources = opened(tmp_path)
    (tmp_path / "x").mkdir()
    texts = [sources.passages[place] for place in range(4)]
    own = BM25Index(texts, k1=2.0, b=0.1).scores(sources.queries[1])
    np.testing.assert_array_equal(scores_of_one(sources, "bm25", k1=2.0, b=0.1)[0], own[[2, 0, 1]])


def test_several_scorers_are_scaled_over_the_mined_passages_and_added_up(tmp_path: Path) -> None:
    scorers = [{"name": "bm25", "weight": 0.3}, {"name": "tower", "weight": 0.7}]
    spec, sources = opened(tmp_path, "dot", *scorers)
    # The third passage was not mined: it is scaled with the others, not among them.
    listed = [np.array([False, True, True]), np.array([True])]
    first, second = scores_of(open_scorers(spec, sources), PAIRS, listed)
    # No text shares a word, so bm25 gives nothing; dot products are 25, 6, 20.
    np.testing.assert_allclose(first, 0.7 * (np.array([25, 6, 20]) - 13) / 7)
    np.testing.assert_array_equal(second, [0])


def test_a_single_scorer_is_raw_by_default(tmp_path: Path) -> None:
    spec, sources = opened(tmp_path / "a", "dot", {"name": "tower", "weight": 2.0})
    listed = [np.array([True, True, True]), np.array([True])]
    np.testing.assert_allclose(
        scores_of(open_scorers(spec, sources), PAIRS, listed)[0], [50, 12, 40]
    )
    spec, sources = opened(tmp_path / "b", "dot", {"name": "tower", "standardize": True})
    scaled = scores_of(open_scorers(spec, sources), PAIRS, listed)[0]
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-12)
