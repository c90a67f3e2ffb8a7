"""Scores of classification, and what a random encoder would reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def top_k_hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether the label is among the k best classes, `[N]` bool; equal scores are ordered by class
    index, lowest first.

    Args:
        scores: `[N, C]`, larger is better.
        labels: `[N]` int64.
    """
    own = scores.gather(1, labels.view(-1, 1))
    # Counted as "not at most", so that a score that is not a number is a miss and not a hit.
    ahead = scores.shape[1] - (scores <= own).sum(1)
    position = torch.arange(scores.shape[1], device=scores.device)
    ahead += ((scores == own) & (position < labels.view(-1, 1))).sum(1)
    return ahead < k


def top_k_accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Fraction of rows whose label is among the k best classes."""
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
