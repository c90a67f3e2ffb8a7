from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.metrics.ranking import chance_metrics, ranking_metrics
from vlkd_cli.features.encode import normalize
from vlkd_cli.numerics.topk import top_k

GOLDENS = json.loads(
    (Path(__file__).parents[3] / "golden" / "text_evals.json").read_text(encoding="utf-8")
)
CASES = {case["name"]: case["expected"] for case in GOLDENS["cases"]}
IR = GOLDENS["data"]["ir"]
JUDGED = {query: dict.fromkeys(documents, 1.0) for query, documents in IR["qrels"].items()}


def rank(similarity: str, depth: int = 24) -> dict[str, list[str]]:
    queries, corpus = torch.tensor(IR["query_emb"]), torch.tensor(IR["corpus_emb"])
    if similarity == "cosine":
        queries, corpus = normalize(queries), normalize(corpus)
    _, keys = top_k(queries, corpus, depth)
    return {
        query: [IR["corpus_ids"][key] for key in row]
        for query, row in zip(IR["query_ids"], keys.tolist(), strict=True)
    }


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_lists_and_measures_equal_sentence_transformers(similarity: str) -> None:
    ranked = rank(similarity)
    assert {query: documents[:10] for query, documents in ranked.items()} == CASES[
        "ir_top10_ranking"
    ][similarity]
    found = ranking_metrics(ranked, JUDGED, [1, 5, 10, 100])
    compared = 0
    for name, value in CASES["ir_cosine_and_dot"].items():
        metric = name.removeprefix(f"{similarity}_")
        if metric in found:
            assert found[metric] == pytest.approx(value, abs=1e-6), name
            compared += 1
    assert compared >= 12


def test_measures_equal_trec_eval_and_the_older_evaluators_return_value() -> None:
    found = ranking_metrics(rank("cosine"), JUDGED, [1, 5, 10, 100])
    golden = CASES["ir_pytrec_eval"]
    assert found["ndcg@10"] == pytest.approx(golden["pytrec_ndcg_cut_10"], abs=1e-6)
    assert found["map@100"] == pytest.approx(golden["pytrec_map_cut_100"], abs=1e-6)
    assert found["recall@5"] == pytest.approx(golden["pytrec_recall_5"], abs=1e-6)
    older = max(found["map@100"], ranking_metrics(rank("dot"), JUDGED, [1])["map@100"])
    assert older == pytest.approx(CASES["st22_ir_return_value"]["return"], abs=1e-6)


def test_the_gain_is_the_grade_as_in_trec_eval() -> None:
    judged = {"q": {"a": 3.0, "b": 1.0, "c": 0.0}}
    found = ranking_metrics({"q": ["c", "b", "a"]}, judged, [1])
    discount = [1 / np.log2(place + 1) for place in (1, 2, 3)]
    assert found["ndcg@10"] == pytest.approx(
        (1 * discount[1] + 3 * discount[2]) / (3 * discount[0] + 1 * discount[1])
    )
    binary = ranking_metrics({"q": ["c", "b", "a"]}, judged, [1], gain="binary")
    assert binary["ndcg@10"] == pytest.approx(
        (discount[1] + discount[2]) / (discount[0] + discount[1])
    )


def test_a_judged_query_without_a_list_counts_nothing() -> None:
    judged = {"q0": {"a": 1.0}, "q1": {"b": 1.0}}
    assert ranking_metrics({"q0": ["a"]}, judged, [1])["mrr@10"] == 0.5


def test_chance_is_what_random_orders_reach_on_average() -> None:
    random = np.random.RandomState(0)
    documents = [f"d{i}" for i in range(30)]
    judged = {"q0": {"d0": 1.0}, "q1": {"d1": 2.0, "d2": 1.0, "d3": 1.0}}
    runs = [
        ranking_metrics(
            {query: list(random.permutation(documents)) for query in judged}, judged, [1, 10]
        )
        for _ in range(1000)
    ]
    for metric, value in chance_metrics(judged, 30, [1, 10]).items():
        assert np.mean([run[metric] for run in runs]) == pytest.approx(value, abs=0.03), metric
