"""Measures of ranked lists against judgments, and what a random order would reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Judgments = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> grade; only grades above 0 are relevant."""

Gain = Literal["linear", "binary"]

MRR_DEPTH, NDCG_DEPTH, MAP_DEPTH = 10, 10, 100
KINDS = ("precision", "recall", "f1", "hit", "map", "mrr", "dcg", "ndcg")
"""What `list_metrics` gives at each k."""
R_KINDS = ("r_precision", "map_at_r")
"""What it gives without a k: at the number of relevant documents."""

Numbers = NDArray[np.float64]


def list_metrics(
    gains: Numbers, relevant: Numbers, ks: Sequence[int], *, r_based: bool = False
) -> dict[str, float]:
    """Every measure of one ranked list.

    With h relevant documents among the first k and R in all: precision h/k (also where fewer than k
    documents exist), recall h/R, f1 2h/(k+R), hit, map (the precisions at the ranks of relevant
    documents, summed over min(k, R)), mrr (the reciprocal of the first relevant document's rank),
    dcg (gain / log2(rank + 1)) and ndcg. R-precision is h/R among the first R; map_at_r is map at
    R.

    Args:
        gains: of the documents as they are ranked, best first; 0 for those that are not relevant.
            As long as the largest k, and as R for what is based on it, or as there are documents.
        relevant: gains of all relevant documents, all above 0.
        ks: cut-offs.
        r_based: give r_precision and map_at_r too.
    """
    count, positions = len(relevant), np.arange(1, len(gains) + 1)
    hits = gains > 0
    found = np.cumsum(hits)
    precisions = np.cumsum(np.where(hits, found / positions, 0.0))
    gained = np.cumsum(gains * _discounts(len(gains)))
    ideal = np.cumsum(np.sort(relevant)[::-1] * _discounts(count))
    first = int(np.argmax(hits)) + 1 if hits.any() else 0
    metrics: dict[str, float] = {}
    for k in ks:
        among = _at(found, k)
        values = (
            among / k,
            among / count,
            2 * among / (k + count),
            float(among > 0),
            _at(precisions, k) / min(k, count),
            1 / first if 0 < first <= k else 0.0,
            _at(gained, k),
            _at(gained, k) / _at(ideal, k),
        )
        metrics |= {f"{kind}@{k}": value for kind, value in zip(KINDS, values, strict=True)}
    if r_based:
        metrics["r_precision"] = _at(found, count) / count
        metrics["map_at_r"] = _at(precisions, count) / count
    return metrics


def list_chance(
    relevant: Numbers, num_documents: int, ks: Sequence[int], *, r_based: bool = False
) -> dict[str, float]:
    """What a random order of the documents is expected to reach, for all but map, dcg and map_at_r.

    Args:
        relevant, ks, r_based: see `list_metrics`.
        num_documents: how many are ranked.
    """
    count, deepest = len(relevant), max(ks)
    # none[r]: no relevant document among the first r.
    left = np.arange(deepest)
    steps = np.clip((num_documents - count - left) / np.maximum(num_documents - left, 1), 0, 1)
    none = np.concatenate([[1.0], np.cumprod(steps)])
    reciprocal = np.cumsum((none[:-1] - none[1:]) / np.arange(1, deepest + 1))
    discounts = np.cumsum(_discounts(min(deepest, num_documents)))
    ideal = np.cumsum(np.sort(relevant)[::-1] * _discounts(count))
    chance: dict[str, float] = {}
    for k in ks:
        reached = min(k / num_documents, 1.0)
        hits = count * reached
        chance |= {
            f"precision@{k}": hits / k,
            f"recall@{k}": reached,
            f"f1@{k}": 2 * hits / (k + count),
            f"hit@{k}": float(1 - none[k]),
            f"mrr@{k}": float(reciprocal[k - 1]),
            f"ndcg@{k}": float(relevant.sum()) / num_documents * _at(discounts, k) / _at(ideal, k),
        }
    if r_based:
        chance["r_precision"] = min(count / num_documents, 1.0)
    return chance


def ranking_metrics(
    ranked: Mapping[str, Sequence[str]],
    judged: Judgments,
    ks: Sequence[int],
    *,
    gain: Gain = "linear",
) -> dict[str, float]:
    """MRR@10, nDCG@10, MAP@100, and recall, precision and accuracy at each k, averaged over all
    judged queries; see `list_metrics`.

    A judged query without a ranked list counts 0. The gain of nDCG is the grade (trec_eval) or 1
    (`binary`, sentence-transformers).

    Args:
        ranked: query id -> document ids, best first.
        judged: the judgments; every query has a relevant document.
        ks: cut-offs.
    """
    rows = []
    for query, grades in judged.items():
        relevant = _relevant(grades, gain)
        gains = np.array([relevant.get(each, 0.0) for each in ranked.get(query, ())], dtype=float)
        own = np.array(list(relevant.values()))
        rows.append(list_metrics(gains, own, sorted({*ks, MRR_DEPTH, NDCG_DEPTH, MAP_DEPTH})))
    return _named(mean_of(rows), ks) | {f"map@{MAP_DEPTH}": mean_of(rows)[f"map@{MAP_DEPTH}"]}


def chance_metrics(
    judged: Judgments, num_documents: int, ks: Sequence[int], *, gain: Gain = "linear"
) -> dict[str, float]:
    """What a random order of the documents is expected to reach; mean average precision, which has
    no short formula, is left out."""
    rows = []
    for grades in judged.values():
        own = np.array(list(_relevant(grades, gain).values()))
        rows.append(list_chance(own, num_documents, sorted({*ks, MRR_DEPTH, NDCG_DEPTH})))
    return _named(mean_of(rows), ks)


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure over queries."""
    return {metric: float(np.mean([row[metric] for row in rows])) for metric in rows[0]}


def _relevant(grades: Mapping[str, float], gain: Gain) -> dict[str, float]:
    return {
        document: grade if gain == "linear" else 1.0
        for document, grade in grades.items()
        if grade > 0
    }


def _named(means: Mapping[str, float], ks: Sequence[int]) -> dict[str, float]:
    """The measures that passage retrieval reports."""
    metrics = {f"{kind}@{k}": means[f"{kind}@{k}"] for kind, k in (("mrr", 10), ("ndcg", 10))}
    for k in ks:
        metrics |= {f"{kind}@{k}": means[f"{kind}@{k}"] for kind in ("recall", "precision")}
        metrics[f"accuracy@{k}"] = means[f"hit@{k}"]
    return metrics


def _discounts(count: int) -> Numbers:
    return 1 / np.log2(np.arange(2, count + 2))


def _at(sums: NDArray[np.generic], k: int) -> float:
    """A cumulative sum over the first k, or over all where there are fewer."""
    return float(sums[min(k, len(sums)) - 1]) if len(sums) else 0.0
