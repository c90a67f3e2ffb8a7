"""Whether images of a class form a cluster, without using the classes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.dataset import Dataset, labels_of, named_classes, open_dataset
from vlkd_cli.evaluation.results import DataIdentity, Result
from vlkd_cli.evaluation.suite import Measures, Suite
from vlkd_cli.features.encode import embed_images, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.kmeans import kmeans
from vlkd_cli.recipe.types import DataSource


class Clustering(Suite):
    """K-means on unit-length image features, compared with the classes.

    Reports adjusted mutual information, normalized mutual information, the adjusted Rand index, and
    the accuracy of the best one-to-one matching of clusters and classes.

    Args:
        data: labeled images.
        num_clusters: number of clusters; by default the number of classes.
        num_restarts: independent k-means runs; the one with the lowest inertia counts.
        num_iterations: maximum number of iterations of each run.
        features: features before the head, or after it.
        seed: of the starts.

    Source: ProtoCLIP's clustering_evaluation (faiss, 100 iterations, 5 restarts).
    """

    modalities = frozenset({"image"})
    needs = frozenset({"image", "label"})
    libraries = ("scikit-learn",)

    def __init__(
        self,
        *,
        data: DataSource = None,
        num_clusters: int | None = None,
        num_restarts: int = 5,
        num_iterations: int = 100,
        features: Literal["backbone", "head"] = "head",
        seed: int = 0,
    ) -> None:
        self.data = data
        self.num_clusters = num_clusters
        self.num_restarts = num_restarts
        self.num_iterations = num_iterations
        self.features = features
        self.seed = seed

    def open(self, subject: Subject) -> tuple[Dataset, list[str], Tensor]:
        """The data, its classes and labels."""
        dataset = open_dataset(subject, self.data)
        classes = named_classes(dataset)
        return dataset, classes, labels_of(dataset.reader, classes)

    def measures(self, opened: tuple[Dataset, list[str], Tensor]) -> Measures:
        return Measures([opened[0].name], ["ami", "nmi", "ari", "accuracy"])

    def identity(self, opened: tuple[Dataset, list[str], Tensor]) -> DataIdentity:
        return opened[0].identity(opened[1])

    def run(self, subject: Subject) -> list[Result]:
        dataset, classes, labels = self.open(subject)
        clusters = self.num_clusters or len(classes)
        features = normalize(embed_images(subject, dataset.reader, point=self.features))
        if len(features) < clusters:
            raise DataError(
                f"data '{dataset.name}' has {len(features)} images, too few for {clusters}"
                " clusters. Lower `num_clusters`."
            )
        found = kmeans(
            features,
            clusters,
            num_iterations=self.num_iterations,
            num_restarts=self.num_restarts,
            num_candidates=2 + int(math.log(clusters)),
            tolerance=1e-4,
            seed=self.seed,
        )
        return [
            self.result(
                subject,
                self.identity((dataset, classes, labels)),
                protocol=f"kmeans_{clusters}",
                metrics=cluster_scores(labels, found.labels),
                primary_metric="ami",
                chance={
                    "ami": 0.0,
                    "ari": 0.0,
                    "accuracy": chance_accuracy(labels, found.labels, self.seed),
                },
                num_items=len(labels),
                settings={"clusters": clusters},
                details={"inertia": found.inertia},
            )
        ]


def cluster_scores(labels: Tensor, clusters: Tensor) -> dict[str, float]:
    """AMI, NMI, ARI and the accuracy of the best matching, from `[N]` class labels and `[N]`
    cluster numbers."""
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        adjusted_rand_score,
        normalized_mutual_info_score,
    )

    truth, found = labels.numpy(), clusters.numpy()
    return {
        "ami": float(adjusted_mutual_info_score(truth, found)),
        "nmi": float(normalized_mutual_info_score(truth, found)),
        "ari": float(adjusted_rand_score(truth, found)),
        "accuracy": matched_accuracy(labels, clusters),
    }


def matched_accuracy(labels: Tensor, clusters: Tensor) -> float:
    """Fraction of rows in the cluster that the Hungarian method matches with their class."""
    from scipy.optimize import linear_sum_assignment

    width = int(clusters.max()) + 1
    table = (
        torch.bincount(labels * width + clusters, minlength=(int(labels.max()) + 1) * width)
        .view(-1, width)
        .numpy()
    )
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(labels))


def chance_accuracy(labels: Tensor, clusters: Tensor, seed: int, draws: int = 10) -> float:
    """Mean matched accuracy of clusters of these sizes dealt at random; there is no closed form."""
    generator = torch.Generator().manual_seed(seed)
    return float(
        np.mean(
            [
                matched_accuracy(
                    labels, clusters[torch.randperm(len(clusters), generator=generator)]
                )
                for _ in range(draws)
            ]
        )
    )
