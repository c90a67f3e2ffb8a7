"""One spawn for all text suites: two ranks give the numbers of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.ranks import run_on_ranks
from tests.support.text_folders import (
    random_subject,
    write_beir,
    write_captioned,
    write_marco,
    write_senteval,
    write_wiki_sections,
    write_word_similarity,
)
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.recipe.schema import EvalSpec


def evaluate(root: str, cache: str | None) -> list[dict[str, Any]]:
    below = Path(root)
    specs = [
        {"suite": "sts", "data": root},
        {
            "suite": "senteval",
            "data": root,
            "tasks": ["MR", "TREC", "MRPC", "SST5"],
            "classifier": "sklearn",
            "kfold": 3,
        },
        {"suite": "senteval", "data": root, "tasks": ["CR"], "classifier": "fast", "kfold": 2},
        {"suite": "word_similarity", "data": str(below / "words")},
        {"suite": "wiki_sections", "data": str(below / "wiki")},
        {"suite": "passage_retrieval", "data": str(below / "marco"), "chunk_size": 7},
        {"suite": "passage_retrieval", "data": str(below / "beir"), "chunk_size": 100},
        {"suite": "captioned", "data": str(below / "captioned"), "C": 10.0},
    ]
    subject = random_subject(cache=None if cache is None else Path(cache))
    results = run_suites(subject, [EvalSpec(**spec) for spec in specs])
    return [
        {"dataset": result.dataset, "metrics": result.metrics, "items": result.num_items}
        for result in results
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_senteval(tmp_path, items=24)
    write_word_similarity(tmp_path / "words")
    write_wiki_sections(tmp_path / "wiki")
    write_marco(tmp_path / "marco")
    write_beir(tmp_path / "beir")
    write_captioned(tmp_path / "captioned")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_give_the_numbers_of_one(root: Path, tmp_path: Path) -> None:
    alone = evaluate(str(root), None)
    assert len(alone) == 9 + 5 + 3 + 1 + 2 + 1
    for answer in run_on_ranks(evaluate, 2, str(root), str(tmp_path / "cache")):
        assert len(answer) == len(alone)
        for found, expected in zip(answer, alone, strict=True):
            assert (found["dataset"], found["items"]) == (expected["dataset"], expected["items"])
            assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
