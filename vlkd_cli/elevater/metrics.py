"""ELEVATER's four metrics, from scores `[N, C]` as a submission holds them.

Source: Elevater_Toolkit_IC @00d0af7, evaluation/metric.py, on vision-evaluation 0.2.9 (0.2.14 gives
the same values).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.errors import DataError

Scores = NDArray[np.floating]
Targets = NDArray[np.int64]


def accuracy(scores: Scores, targets: Targets) -> float:
    """Fraction of rows whose highest column is the target; the lowest column wins ties."""
    return float((scores.argmax(1) == targets).mean())


def mean_per_class(scores: Scores, targets: Targets) -> float:
    """Mean recall over the classes that occur; columns of classes that do not occur are taken out
    before the highest is looked for."""
    present, own = np.unique(targets, return_inverse=True)
    hits = scores[:, present].argmax(1) == own
    return float((np.bincount(own, weights=hits) / np.bincount(own)).mean())


def map_11_points(scores: Scores, targets: Targets) -> float:
    """Mean over classes of 11-point interpolated average precision; classes without a positive row
    are left out.

    Args:
        targets: `[N, C]` of zeros and ones.

    Recall 0 always counts with precision 1, since the curve is scikit-learn's, which ends there:
    this is not the VOC devkit's value.
    """
    present = np.flatnonzero(targets.sum(0))
    if not len(present):
        raise DataError(
            "no row has a label, so there is no average precision. Take the index of a part that is"
            " labeled."
        )
    return float(
        np.mean([_average_precision(scores[:, label], targets[:, label]) for label in present])
    )


def _average_precision(scores: Scores, positive: Targets) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Rows of equal score enter together: the curve has one point per distinct score.
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = np.cumsum(positive[order])[ends]
    precision = np.append(hits / (ends + 1), 1.0)
    recall = np.append(hits / hits[-1], 0.0)
    # The thresholds are numpy's: 0.3 is 0.29999999999999993, which matters for classes of ten
    # rows.
    return float(
        np.mean([precision[recall >= threshold].max() for threshold in np.linspace(1, 0, 11)])
    )


def roc_auc(scores: Scores, targets: Targets) -> float:
    """Area under the ROC curve of column 1 of two; equal scores count half.

    Raises:
        DataError: only one class occurs.
    """
    chosen = scores[:, 1] if scores.ndim == 2 else scores
    positives = int(targets.sum())
    negatives = len(targets) - positives
    if not positives or not negatives:
        raise DataError(
            "ROC AUC needs rows of both classes, and all rows are of one. Take the whole index."
        )
    _, group, counts = np.unique(chosen, return_inverse=True, return_counts=True)
    middle_ranks = np.cumsum(counts) - (counts - 1) / 2
    ranks = middle_ranks[group][targets == 1].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


METRICS: Mapping[str, Callable[[Scores, Targets], float]] = {
    "accuracy": accuracy,
    "mean-per-class": mean_per_class,
    "11point_mAP": map_11_points,
    "roc_auc": roc_auc,
}


def chance(metric: str, num_classes: int, targets: Targets) -> float:
    """What random scores reach on these targets; for 11-point mAP the mean of ten random
    samples."""
    if metric == "11point_mAP":
        random = np.random.default_rng(0)
        draws = [map_11_points(random.random(targets.shape), targets) for _ in range(10)]
        return float(np.mean(draws))
    return 0.5 if metric == "roc_auc" else 1 / num_classes
