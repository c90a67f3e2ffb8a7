"""Classify images by their nearest training images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlkd_cli.errors import RecipeError
from vlkd_cli.evaluation.datasets.dataset import LabeledPair, labeled_pair
from vlkd_cli.evaluation.metrics.classification import mean_per_class, top_k_accuracy, top_k_hits
from vlkd_cli.evaluation.metrics.groups import GROUP_METRICS, check_min_group, figures_by_group
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.topk import top_k
from vlkd_cli.recipe.types import DataSource


class KNN(Suite):
    """Vote of the k training images of highest cosine, each with the weight exp(cosine /
    temperature).

    Args:
        data: labeled images that are classified.
        train_data: labeled images that vote; by default the same data with `split: train`.
        k: numbers of neighbors; those beyond the training set are left out. The primary metric is
            that of 20, or of the largest where 20 is not among them.
        temperature: of the weights; 0 lets every neighbor count 1.
        features: features before the head, or after it.
        min_group: images that a group needs to be the worst one, by default 10, of data whose
            images belong to groups (`group:` of reader csv). Groups are those of the primary
            metric's k.

    Source: DINO's eval_knn.py; ITRA's knn evaluation is k 20.
    """

    modalities = frozenset({"image"})
    needs = frozenset({"image", "label"})

    def __init__(
        self,
        *,
        data: DataSource = None,
        train_data: DataSource = None,
        k: list[int] | None = None,
        temperature: float = 0.07,
        features: Literal["backbone", "head"] = "backbone",
        min_group: int | None = None,
    ) -> None:
        self.data, self.train_data = data, train_data
        self.min_group = min_group
        check_min_group("knn", min_group)
        self.k = tuple(sorted(k or (10, 20, 100, 200)))
        self.temperature = temperature
        self.features = features
        if self.k[0] < 1 or temperature < 0:
            raise RecipeError("suite 'knn': k must be at least 1 and temperature at least 0.")

    def open(self, subject: Subject) -> LabeledPair:
        pair = labeled_pair(subject, self.data, self.train_data)
        check_min_group("knn", self.min_group, pair.test.reader)
        return pair

    def measures(self, opened: LabeledPair) -> Measures:
        ks = self._neighbors(len(opened.train_labels))
        names = [f"k{k}_{name}" for k in ks for name in ("top1", "top5", "mean_per_class")]
        return Measures([opened.test.name], [*names, *GROUP_METRICS])

    def run(self, subject: Subject) -> list[Result]:
        pair = self.open(subject)
        train = normalize(embed_images(subject, pair.train.reader, point=self.features))
        test = normalize(embed_images(subject, pair.test.reader, point=self.features))
        num_classes = len(pair.classes)
        ks = self._neighbors(len(train))
        votes = vote(
            train,
            pair.train_labels,
            test,
            ks=ks,
            temperature=self.temperature,
            num_classes=num_classes,
        )
        metrics: dict[str, float] = {}
        chance: dict[str, float] = {}
        for k, scores in votes.items():
            metrics[f"k{k}_top1"] = top_k_accuracy(scores, pair.test_labels)
            chance[f"k{k}_top1"] = 1 / num_classes
            if num_classes > 5 and k >= 5:  # with fewer votes the fifth class is nobody's choice
                metrics[f"k{k}_top5"] = top_k_accuracy(scores, pair.test_labels, 5)
                chance[f"k{k}_top5"] = 5 / num_classes
            metrics[f"k{k}_mean_per_class"] = mean_per_class(scores.argmax(1), pair.test_labels)
            chance[f"k{k}_mean_per_class"] = 1 / num_classes
        primary = 20 if 20 in votes else ks[-1]
        hits = top_k_hits(votes[primary], pair.test_labels, 1).cpu().numpy()
        by_group, details = figures_by_group(pair.test.reader, hits, self.min_group)
        return [
            self.result(
                subject,
                pair.identity(),
                protocol="weighted" if self.temperature else "majority",
                metrics=metrics | by_group,
                primary_metric=f"k{primary}_top1",
                chance=chance,
                num_items=len(test),
                details=details,
                settings={
                    "k": list(ks),
                    "train_split": pair.train.split,
                    "train_images": len(train),
                },
            )
        ]

    def _neighbors(self, num_train: int) -> tuple[int, ...]:
        return tuple(k for k in self.k if k <= num_train) or (num_train,)


def vote(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    *,
    ks: tuple[int, ...],
    temperature: float,
    num_classes: int,
) -> dict[int, Tensor]:
    """Votes `[N, C]` for each k.

    Args:
        train: unit-length features `[M, D]` with `labels` `[M]`.
        test: unit-length features `[N, D]`.
    """
    similarity, neighbors = top_k(test, train, max(ks))
    # Relative to the nearest, which changes no vote's order, so that a low temperature ends in no
    # infinity.
    nearer = similarity - similarity[:, :1]
    weights = (nearer / temperature).exp() if temperature else torch.ones_like(nearer)
    classes = labels.to(neighbors.device)[neighbors]
    return {
        k: (
            torch.zeros(len(test), num_classes, device=test.device).scatter_add_(
                1, classes[:, :k], weights[:, :k]
            )
        )
        for k in ks
    }
