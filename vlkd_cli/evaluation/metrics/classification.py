"""Scores of classification and ranking, and what a random encoder would reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size


def top_k_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k best classes, `[N]` bool; equal scores are ordered by class
    index, lowest first.

    Args:
        scores: `[N, C]`, larger is better.
        labels: `[N]` int64.
    """
    own = scores.gather(1, labels.view(-1, 1))
    # Counted as "not at most", so that a score that is no number is a miss and not a hit.
    ahead = scores.shape[1] - (scores <= own).sum(1)
    position = torch.arange(scores.shape[1], device=scores.device)
    ahead += ((scores == own) & (position < labels.view(-1, 1))).sum(1)
    return ahead < k


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share of rows whose label is among the k best classes."""
    return top_k_hits(scores, labels, k).double().mean().item()


class ClassRecall(NamedTuple):
    """Recall of one class."""

    label: int
    images: int
    recall: float


def recall_per_class(predicted: Tensor, labels: Tensor) -> list[ClassRecall]:
    """Recall of every class that occurs among the labels, in label order."""
    counts = torch.bincount(labels)
    hits = torch.bincount(labels[predicted == labels], minlength=len(counts))
    present = counts.nonzero().flatten().tolist()
    return [
        ClassRecall(label, int(counts[label]), float(hits[label] / counts[label].double()))
        for label in present
    ]


def mean_per_class(predicted: Tensor, labels: Tensor) -> float:
    """Mean recall over the classes that occur (scikit-learn's balanced accuracy)."""
    return float(np.mean([row.recall for row in recall_per_class(predicted, labels)]))


class Confusion(NamedTuple):
    """How often one class was taken for another."""

    label: int
    predicted: int
    images: int


def confusion_pairs(
    predicted: Tensor, labels: Tensor, num_classes: int, most: int = 20
) -> list[Confusion]:
    """The most frequent mistakes, most frequent first; ties by label and prediction."""
    wrong = predicted != labels
    pairs, counts = torch.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)[:most]
    return [
        Confusion(int(pairs[i]) // num_classes, int(pairs[i]) % num_classes, int(counts[i]))
        for i in order
    ]


def average_precision(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve without interpolation; rows of equal score enter
    together; 0 without a positive.

    Args:
        scores: `[N]`, larger is more likely.
        targets: `[N]`.
    """
    positives = int(targets.sum())
    if positives == 0:
        return 0.0
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(targets[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    precision = hits[last_of_ties] / (last_of_ties + 1)
    gained = np.diff(hits[last_of_ties], prepend=0) / positives
    return float((precision * gained).sum())


def mean_average_precision(scores: NDArray[np.float64], targets: NDArray[np.bool_]) -> float:
    """Mean of the classes' average precisions; classes without a positive count 0 (as in
    CLIP_benchmark).

    Args:
        scores: `[N, C]`.
        targets: `[N, C]`.
    """
    return float(
        np.mean([average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1])])
    )


def chance_average_precision(positives: int, rows: int) -> float:
    """Expected average precision of a random order: (H + (R-1)/(N-1) (N - H)) / N with H the N-th
    harmonic number."""
    if positives == 0 or rows == 0:
        return 0.0
    if rows == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, rows + 1)).sum())
    return (harmonic + (positives - 1) / (rows - 1) * (rows - harmonic)) / rows


def ranks_of_own(
    queries: Tensor,
    candidates: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    budget_bytes: int = 8 << 20,
    spread: bool = True,
) -> Tensor:
    """1-based rank of each query's best own candidate by inner product, without ever holding all
    scores.

    The own candidates of query i are the rows `first[i]` to `last[i]` (exclusive). A candidate of
    equal score is ahead of the own one if it stands before it in the list, so that equal features
    for everything rank at chance and not at 1; features that are no numbers rank last.

    Args:
        queries: `[N, D]`, on the CPU like the other tensors.
        candidates: `[M, D]`.
        first: `[N]` int64.
        last: `[N]` int64, larger than `first`.
        budget_bytes: largest block of scores.
        spread: deal the blocks to the ranks of the process group; the answer is the same on all of
            them.

    Returns:
        `[N]` int64.
    """
    rows = max(1, min(len(queries), budget_bytes // (4 * max(len(candidates), 1))))
    answer = torch.zeros(len(queries), dtype=torch.int64)
    ranks, starts, stops = answer.numpy(), first.numpy(), last.numpy()
    share, shares = (rank(), world_size()) if spread else (0, 1)
    scores = torch.empty(rows, len(candidates))
    turned = candidates.T
    for number, start in enumerate(range(0, len(queries), rows)):
        if number % shares == share:
            stop = min(start + rows, len(queries))
            block = torch.mm(queries[start:stop], turned, out=scores[: stop - start]).numpy()
            for query, row in zip(range(start, stop), block, strict=True):
                ranks[query] = _rank_of_best(row, int(starts[query]), int(stops[query]))
    return sum_without_grad(answer) if spread else answer


def _rank_of_best(scores: NDArray[np.float32], first: int, last: int) -> int:
    """Rank of the best of the scores from `first` to `last`, among all."""
    place = first + int(scores[first:last].argmax())
    best = scores[place]
    # Counted as "not less" and "not at most", so that what is no number is not taken for smaller.
    before = place - np.count_nonzero(scores[:place] < best)
    after = len(scores) - place - 1 - np.count_nonzero(scores[place + 1 :] <= best)
    return int(before + after) + 1


class RankScores(NamedTuple):
    """Recall at each k, and the mean and median of 1-based ranks."""

    recall: dict[int, float]
    mean_rank: float
    median_rank: float


def rank_scores(ranks: Tensor, ks: tuple[int, ...]) -> RankScores:
    """Summary of `[N]` 1-based ranks; the median of an even number is rounded down, as open_clip
    reports it."""
    numbers = ranks.double()
    median = float(np.floor(np.median(numbers.cpu().numpy() - 1)) + 1)
    return RankScores(
        {k: (ranks <= k).double().mean().item() for k in ks}, numbers.mean().item(), median
    )


def chance_recall(num_own: NDArray[np.int64], num_candidates: int, k: int) -> float:
    """Expected recall at k of a random order: 1 - C(M - m, k) / C(M, k), averaged over queries with
    m own candidates."""
    own, counts = np.unique(num_own, return_counts=True)
    miss = np.ones(len(own))
    for drawn in range(min(k, num_candidates)):
        miss *= np.clip((num_candidates - own - drawn) / (num_candidates - drawn), 0, 1)
    return float(((1 - miss) * counts).sum() / counts.sum())


def chance_median_rank(num_own: NDArray[np.int64], num_candidates: int) -> float:
    """The smallest k at which a random order finds half of the queries' own candidates."""
    low, high = 1, num_candidates
    while low < high:
        middle = (low + high) // 2
        if chance_recall(num_own, num_candidates, middle) >= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)


def chance_mean_rank(num_own: NDArray[np.int64], num_candidates: int) -> float:
    """Expected rank of the best of m own candidates in a random order of M: (M + 1) / (m + 1)."""
    return float(((num_candidates + 1) / (num_own + 1)).mean())
