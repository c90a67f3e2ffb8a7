"""Classify images by the text features of prompts."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor

from vlkd_cli.distributed.runtime import is_main
from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.datasets.dataset import Dataset, class_hash, labels_of, open_dataset
from vlkd_cli.evaluation.datasets.prompts import names_of, prompts_of
from vlkd_cli.evaluation.metrics.classification import (
    chance_average_precision,
    confusion_pairs,
    mean_average_precision,
    mean_per_class,
    recall_per_class,
    top_k_accuracy,
)
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


class ZeroShot(Suite):
    """Classify each image by the nearest class, where a class is the mean of its prompts' text
    features.

    Data with several labels per image is scored by the mean over classes of the average precision
    of the cosine.

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
        multi_label: whether images have several labels; by default as the data says.
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
        items: bool = True,
    ) -> None:
        self.data = data
        self.templates = templates
        self.classes = classes
        self.ensemble = ensemble
        self.k = tuple(sorted(k or (1, 5)))
        self.multi_label = multi_label
        self.items = items
        if self.k[0] < 1:
            raise RecipeError("suite 'zero_shot': k must be at least 1.")

    def open(self, subject: Subject) -> tuple[Dataset, list[str], list[list[str]]]:
        """The data, its class names, and the prompts of each."""
        dataset = open_dataset(subject, self.data)
        names = names_of(dataset, self.classes, self.data)
        return dataset, names, prompts_of(dataset, names, self.templates, self.data)

    def measures(self, opened: tuple[Dataset, list[str], list[list[str]]]) -> Measures:
        dataset, names, _ = opened
        accuracies = [f"top{k}" for k in self._cut_offs(len(names))]
        return Measures([dataset.name], [*accuracies, "mean_per_class", "mean_average_precision"])

    def identity(self, opened: tuple[Dataset, list[str], list[list[str]]]) -> DataIdentity:
        dataset, names, texts = opened
        known = dataset.identity(names)
        prompts = class_hash([text for own in texts for text in own])
        return known._replace(hashes={**known.hashes, "prompts": prompts})

    def run(self, subject: Subject) -> list[Result]:
        dataset, names, texts = self.open(subject)
        images = normalize(embed_images(subject, dataset.reader))
        classifier = class_features(subject, texts, self.ensemble)
        require_equal_widths(images.shape[1], classifier.shape[1], "zero_shot")
        cosine = images @ classifier.T
        several = [tuple(dataset.reader.labels(index)) for index in range(len(dataset.reader))]
        many = (
            dataset.reader.multi_label or any(len(labels) > 1 for labels in several)
            if self.multi_label is None
            else self.multi_label
        )
        if many:
            labels = None
            metrics, chance, details = self._multi_label(cosine, several, names)
        else:
            labels = labels_of(dataset.reader, names)
            metrics, chance, details = self._single_label(cosine, labels, names)
        items, shown = None, None
        if self.items and labels is not None:
            items = classification_items(cosine, labels)
            if is_main():
                shown = classification_shown(cosine, labels, images, names, dataset.reader)
        return [
            self.result(
                subject,
                self.identity((dataset, names, texts)),
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
        """Those that say something: with k classes or fewer, every class is among the first k."""
        return [k for k in self.k if k == 1 or k < num_classes]

    def _single_label(
        self, scores: Tensor, labels: Tensor, names: list[str]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        predicted = scores.argmax(1)
        ks = self._cut_offs(len(names))
        metrics = {f"top{k}": top_k_accuracy(scores, labels, k) for k in ks}
        chance = {f"top{k}": min(k / len(names), 1.0) for k in ks}
        metrics["mean_per_class"] = mean_per_class(predicted, labels)
        chance["mean_per_class"] = 1 / len(names)
        details = {
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
        self, scores: Tensor, several: list[tuple[int, ...]], names: list[str]
    ) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        targets = np.zeros((len(several), len(names)), dtype=bool)
        for row, labels in enumerate(several):
            targets[row, list(labels)] = True
        values = scores.double().numpy()
        metrics = {"mean_average_precision": mean_average_precision(values, targets)}
        positives = targets.sum(0)
        chance = {
            "mean_average_precision": float(
                np.mean([chance_average_precision(int(n), len(several)) for n in positives])
            )
        }
        details = {
            "per_class": [
                {"class": name, "images": int(count)}
                for name, count in zip(names, positives, strict=True)
            ]
        }
        return metrics, chance, details
