"""Measures of ranked lists against judgments, and what a random order would reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

Judgments = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> grade; only grades above 0 are relevant."""

Gain = Literal["linear", "binary"]

MRR_DEPTH, NDCG_DEPTH, MAP_DEPTH = 10, 10, 100


def ranking_metrics(
    ranked: Mapping[str, Sequence[str]],
    judged: Judgments,
    ks: Sequence[int],
    *,
    gain: Gain = "linear",
) -> dict[str, float]:
    """MRR@10, nDCG@10, MAP@100, and recall, precision and accuracy at each k, averaged over all
    judged queries.

    A judged query without a ranked list counts 0. Precision is divided by k even where fewer
    documents exist; average precision by min(100, number relevant). The gain of nDCG is the grade
    (trec_eval) or 1 (`binary`, sentence-transformers).

    Args:
        ranked: query id -> document ids, best first.
        judged: the judgments; every query has a relevant document.
        ks: cut-offs.
    """
    rows = [
        _query_metrics(ranked.get(query, ()), grades, ks, gain) for query, grades in judged.items()
    ]
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}


def _query_metrics(
    documents: Sequence[str], grades: Mapping[str, float], ks: Sequence[int], gain: Gain
) -> dict[str, float]:
    relevant = {
        document: grade if gain == "linear" else 1.0
        for document, grade in grades.items()
        if grade > 0
    }
    gains = [relevant.get(document, 0.0) for document in documents]
    hits = [value > 0 for value in gains]
    first = next((place for place, hit in enumerate(hits[:MRR_DEPTH], start=1) if hit), None)
    ideal = _discounted(sorted(relevant.values(), reverse=True)[:NDCG_DEPTH])
    found, precisions = 0, 0.0
    for place, hit in enumerate(hits[:MAP_DEPTH], start=1):
        if hit:
            found += 1
            precisions += found / place
    metrics = {
        f"mrr@{MRR_DEPTH}": 0.0 if first is None else 1 / first,
        f"ndcg@{NDCG_DEPTH}": _discounted(gains[:NDCG_DEPTH]) / ideal,
        f"map@{MAP_DEPTH}": precisions / min(MAP_DEPTH, len(relevant)),
    }
    for k in ks:
        metrics[f"recall@{k}"] = sum(hits[:k]) / len(relevant)
        metrics[f"precision@{k}"] = sum(hits[:k]) / k
        metrics[f"accuracy@{k}"] = float(any(hits[:k]))
    return metrics


def _discounted(gains: Sequence[float]) -> float:
    return sum(value / float(np.log2(place + 1)) for place, value in enumerate(gains, start=1))


def chance_metrics(
    judged: Judgments, num_documents: int, ks: Sequence[int], *, gain: Gain = "linear"
) -> dict[str, float]:
    """What a random order of the documents is expected to reach; mean average precision, which has
    no short formula, is left out."""
    rows = []
    for grades in judged.values():
        relevant = [grade if gain == "linear" else 1.0 for grade in grades.values() if grade > 0]
        # none[r]: no relevant document among the first r.
        left = np.arange(max(MRR_DEPTH, *ks))
        steps = np.clip(
            (num_documents - len(relevant) - left) / np.maximum(num_documents - left, 1), 0, 1
        )
        none = np.concatenate([[1.0], np.cumprod(steps)])
        discounts = 1 / np.log2(np.arange(2, min(NDCG_DEPTH, num_documents) + 2))
        row = {
            f"mrr@{MRR_DEPTH}": float(
                ((none[:MRR_DEPTH] - none[1 : MRR_DEPTH + 1]) / np.arange(1, MRR_DEPTH + 1)).sum()
            ),
            f"ndcg@{NDCG_DEPTH}": (
                sum(relevant)
                / num_documents
                * float(discounts.sum())
                / _discounted(sorted(relevant, reverse=True)[:10])
            ),
        }
        for k in ks:
            row[f"recall@{k}"] = min(k / num_documents, 1.0)
            row[f"precision@{k}"] = len(relevant) * min(k / num_documents, 1.0) / k
            row[f"accuracy@{k}"] = float(1 - none[k])
        rows.append(row)
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}
