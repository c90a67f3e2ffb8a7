"""The answers of a stored result, item by item, as values that can be subtracted and averaged."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from vlkd_cli.reports.records import StoredResult
from vlkd_cli.reports.result_file import ResultJson

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_CHOICES = {
    "accuracy": "right",
    "group_score": "right",
    "text_score": "right_text",
    "image_score": "right_image",
}
"""Metrics of suite `caption_choice`, and the answers that they are the mean of."""


class Answers(NamedTuple):
    """A value for each item, their mean being the metric, and the group that an item belongs to."""

    values: NDArray[np.float64]
    groups: NDArray[np.int64]


def is_accuracy(metric: str) -> bool:
    """Whether a metric is a fraction of items that are right."""
    return (
        re.fullmatch(
            r"accuracy|(text|image|group)_score|top1|(image_to_text|text_to_image)_R@\d+", metric
        )
        is not None
    )


def answers_of(result: StoredResult, metric: str) -> Answers | None:
    """The answers behind a metric; None if the result has none stored, or the metric is not a mean
    over items.

    `mean_recall` is the mean over images where each image has as many captions.
    """
    import numpy as np

    path = result.sidecar("items")
    try:
        with np.load(path, allow_pickle=False) as file:
            items = dict(file)
        return _answers(items, metric, result.content)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _answers(items: Mapping[str, np.ndarray], metric: str, content: ResultJson) -> Answers | None:
    import numpy as np

    if metric in _CHOICES:
        rows = int(content["num_items"])
        right = np.unpackbits(items[_CHOICES[metric]], count=rows).astype(np.float64)
        return Answers(right, np.arange(rows))
    if metric == "top1":
        rows = len(items["predicted"])
        right = np.unpackbits(items["right"], count=rows).astype(np.float64)
        return Answers(right, np.arange(rows))
    recall = re.fullmatch(r"(image_to_text|text_to_image)_R@(\d+)", metric)
    if recall is None and metric != "mean_recall":
        return None
    counts = items["captions"]
    owner = np.repeat(np.arange(len(counts)), counts)
    if recall is not None:
        k = int(recall[2])
        if recall[1] == "image_to_text":
            return Answers((items["image_rank"] <= k).astype(np.float64), np.arange(len(counts)))
        return Answers((items["caption_rank"] <= k).astype(np.float64), owner)
    ks = (content.get("settings") or {}).get("k")
    if not isinstance(ks, list) or not ks or len(set(counts.tolist())) != 1:
        return None
    image = np.mean([items["image_rank"] <= k for k in ks], axis=0)
    caption = np.mean([items["caption_rank"] <= k for k in ks], axis=0)
    return Answers((image + caption.reshape(len(counts), -1).mean(1)) / 2, np.arange(len(counts)))
