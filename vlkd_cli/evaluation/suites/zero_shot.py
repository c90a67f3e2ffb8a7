"""Classify images by the text features of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.dataset import Dataset, class_hash, labels_of, open_dataset
from vlkd_cli.evaluation.datasets.imagenet import ImageNetHead, imagenet_head
from vlkd_cli.evaluation.datasets.prompts import names_of, prompts_of
from vlkd_cli.evaluation.metrics.classification import (
    chance_average_precision,
    confusion_pairs,
    mean_average_precision,
    mean_per_class,
    recall_per_class,
    top_k_accuracy,
    top_k_hits,
)
from vlkd_cli.evaluation.metrics.groups import GROUP_METRICS, check_min_group, figures_by_group
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.shown import classification_items, classification_shown
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import (
    class_features,
    embed_images,
    normalize,
    require_equal_widths,
)
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.types import DataSource


class Opened(NamedTuple):
    """What is classified into which classes."""

    dataset: Dataset
    names: list[str]
    texts: list[list[str]]
    """The prompts of each class that is encoded."""
    head: ImageNetHead | None = None
    """Of a variant of ImageNet: how scores of the 1,000 classes become scores of `names`."""


class ZeroShot(Suite):
    """Classify each image by the nearest class, where a class is the mean of its prompts' text
    features.

    Variants of ImageNet are scored by one head of its 1,000 classes, of which ImageNet-A and -R
    take their 200 columns before the best is chosen. Data with several labels per image is scored
    by the mean over classes of the average precision of the cosine.

    Args:
        data: labeled images, `{reader: ..., ...}`.
        templates: prompt templates: a list, a file, `open_clip:imagenet`, `open_clip:simple`,
            `clip_benchmark`, or the name of a set that vlkd brings along; by default the data's
            own, else the set of that data's name, else a general one.
        classes: class names in label order: a list or a file, where the data has none or others are
            wanted.
        ensemble: how the prompts of a class become one feature: each L2-normalized before
            the mean (CLIP), or the mean of the features as they are. Either mean is L2-normalized
            .
        k: the accuracies to report.
        multi_label: whether images have several labels; by default as the data declares.
        min_group: images that a group needs to be the worst one, by default 10, of data whose
            images belong to groups (`group:` of reader csv).
        items: also write the answer to every image, to compare two models on the same images, and
            the pictures that the report page shows; not with several labels per image.

    Source: CLIP's zero-shot notebook; CLIP_benchmark's zeroshot_classification.py for the metrics;
        `raw_mean` as in ITRA.
    """

    modalities = frozenset({"image", "text"})
    needs = frozenset({"image", "label"})

    def __init__(
        self,
        *,
        data: DataSource = None,
        templates: str | list[str] | None = None,
        classes: str | list[str] | None = None,
        ensemble: Literal["normalize", "raw_mean"] = "normalize",
        k: list[int] | None = None,
        multi_label: bool | None = None,
        min_group: int | None = None,
        items: bool = True,
    ) -> None:
        self.data = data
        self.templates = templates
        self.classes = classes
        self.ensemble = ensemble
        self.k = tuple(sorted(k or (1, 5)))
        self.multi_label = multi_label
        self.min_group = min_group
        self.items = items
        check_min_group("zero_shot", min_group)
        if self.k[0] < 1:
            raise RecipeError("suite 'zero_shot': k must be at least 1.")

    def open(self, subject: Subject) -> Opened:
        """The data, its class names, and the prompts of the classes that are encoded."""
        dataset = open_dataset(subject, self.data)
        check_min_group("zero_shot", self.min_group, dataset.reader)
        head = imagenet_head(dataset, self.classes)
        if head is not None:
            texts = prompts_of(dataset, head.encoded, self.templates, self.data)
            return Opened(dataset, head.names, texts, head)
        names = names_of(dataset, self.classes, self.data)
        return Opened(dataset, names, prompts_of(dataset, names, self.templates, self.data))

    def measures(self, opened: Opened) -> Measures:
        accuracies = [f"top{k}" for k in self._cut_offs(len(opened.names))]
        others = ["mean_per_class", "mean_average_precision", *GROUP_METRICS]
        return Measures([opened.dataset.name], [*accuracies, *others])

    def identity(self, opened: Opened) -> DataIdentity:
        known = opened.dataset.identity(opened.names)
        prompts = class_hash([text for own in opened.texts for text in own])
        return known._replace(hashes={**known.hashes, "prompts": prompts})

    def run(self, subject: Subject) -> list[Result]:
        opened = self.open(subject)
        dataset, names, texts, head = opened
        images = normalize(embed_images(subject, dataset.reader))
        classifier = class_features(subject, texts, self.ensemble)
        require_equal_widths(images.shape[1], classifier.shape[1], "zero_shot")
        cosine = images @ classifier.T
        if head is not None:
            cosine = head.scores(cosine)
        several = [tuple(dataset.reader.labels(index)) for index in range(len(dataset.reader))]
        many = (
            dataset.reader.multi_label or any(len(labels) > 1 for labels in several)
            if self.multi_label is None
            else self.multi_label
        )
        if many:
            labels = None
            targets = _targets(dataset, several, names, head)
            metrics, chance, details = self._multi_label(cosine, targets, names)
        else:
            labels = labels_of(dataset.reader, dataset.reader.classes or names if head else names)
            labels = labels if head is None else head.labels(labels)
            metrics, chance, details = self._single_label(cosine, labels, names)
            hits = top_k_hits(cosine, labels, 1).numpy()
            by_group, groups = figures_by_group(dataset.reader, hits, self.min_group)
            metrics, details = metrics | by_group, details | groups
        items, shown = None, None
        if self.items and labels is not None:
            items = classification_items(cosine, labels)
            if is_main():
                shown = classification_shown(cosine, labels, images, names, dataset.reader)
        return [
            self.result(
                subject,
                self.identity(opened),
                protocol=f"prompts_{self.ensemble}",
                metrics=metrics,
                primary_metric="top1" if "top1" in metrics else next(iter(metrics)),
                chance=chance,
                num_items=len(dataset.reader),
                settings={"multi_label": many, "prompts_per_class": max(map(len, texts))},
                details=details,
                items=items,
                shown=shown,
            )
        ]

    def _cut_offs(self, num_classes: int) -> list[int]:
        """Those that are informative: with k classes or fewer, every class is among the first
        k."""
        return [k for k in self.k if k == 1 or k < num_classes]

    def _single_label(
        self, scores: Tensor, labels: Tensor, names: list[str]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, object]]:
        predicted = scores.argmax(1)
        ks = self._cut_offs(len(names))
        metrics = {f"top{k}": top_k_accuracy(scores, labels, k) for k in ks}
        chance = {f"top{k}": min(k / len(names), 1.0) for k in ks}
        metrics["mean_per_class"] = mean_per_class(predicted, labels)
        chance["mean_per_class"] = 1 / len(names)
        details: dict[str, object] = {
            "per_class": [
                {"class": names[row.label], "images": row.images, "recall": row.recall}
                for row in recall_per_class(predicted, labels)
            ],
            "confusions": [
                {
                    "class": names[pair.label],
                    "taken_for": names[pair.predicted],
                    "images": pair.images,
                }
                for pair in confusion_pairs(predicted, labels, len(names))
            ],
        }
        return metrics, chance, details

    def _multi_label(
        self, scores: Tensor, targets: NDArray[np.bool_], names: list[str]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, object]]:
        values = scores.double().numpy()
        metrics = {"mean_average_precision": mean_average_precision(values, targets)}
        positives = targets.sum(0)
        chance = {
            "mean_average_precision": float(
                np.mean([chance_average_precision(int(n), len(targets)) for n in positives])
            )
        }
        details: dict[str, object] = {
            "per_class": [
                {"class": name, "images": int(count)}
                for name, count in zip(names, positives, strict=True)
            ]
        }
        return metrics, chance, details


def _targets(
    dataset: Dataset,
    several: Sequence[Sequence[int]],
    names: Sequence[str],
    head: ImageNetHead | None,
) -> NDArray[np.bool_]:
    """Which classes each image has, `[N, C]`.

    Raises:
        DataError: an image has a label beyond the class names.
    """
    column = range(len(names)) if head is None else head.label_of
    targets = np.zeros((len(several), len(names)), dtype=bool)
    for row, labels in enumerate(several):
        for label in labels:
            if not 0 <= label < len(column):
                raise DataError(
                    f"{dataset.reader.name(row)}: label {label} is not one of the {len(column)}"
                    f" classes (0 to {len(column) - 1})."
                )
            targets[row, column[label]] = True
    return targets
