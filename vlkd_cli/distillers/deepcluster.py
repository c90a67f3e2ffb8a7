"""Classification of samples by the clusters of their features, formed again between epochs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.clustered_labels import (
    balanced_weights,
    classified,
    classifier_of,
    cluster,
    gather_samples,
    refuse_few_samples,
    restart,
)
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.recipe.types import NonNegative, NonNegativeInt, PositiveInt, Progress


class DeepCluster(Distiller):
    """Classify samples by clusters that k-means finds among the features of all samples.

    Before an epoch the teacher addresses give the features of its samples, e.g.
    `student: image.backbone, teacher: image.backbone@plain`; steps read the student alone. New
    clusters get a new linear classifier. L = mean of weight(cluster) * CE over the samples that
    have a cluster.

    Args:
        num_clusters: clusters, and outputs of the classifier.
        components: principal components that are clustered, whitened.
        num_iterations: of k-means.
        balance: a cluster of n samples weighs n^-balance; 1 counts every cluster alike, 0 every
            sample.
        every_epochs: epochs between two clusterings.
        seed: of k-means and of the classifier.

    Source: Caron et al., Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018,
    arXiv:1807.05520, equation 2. Differs in weighting samples where the authors sample clusters
    evenly.
    """

    direction = "one_way"
    crosses_ranks = "features of all samples, once per clustering"
    paper = "Caron et al., ECCV 2018, arXiv:1807.05520"
    formula = (
        r"L = -\frac{1}{N} \sum_i w_{c_i} \log \mathrm{softmax}(W s_i + b)_{c_i},"
        r" \quad w_c = \frac{S n_c^{-\beta}}{\sum_k n_k^{1 - \beta}},"
        r" \quad c = \mathrm{kmeans}(t_1, \ldots, t_S)"
    )

    labels: Tensor
    weights: Tensor
    classifier: nn.Linear

    def __init__(
        self,
        *,
        num_clusters: PositiveInt = 10000,
        components: PositiveInt = 256,
        num_iterations: PositiveInt = 20,
        balance: NonNegative = 1.0,
        every_epochs: PositiveInt = 1,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.num_clusters, self.components = num_clusters, components
        self.num_iterations, self.balance = num_iterations, balance
        self.every_epochs, self.seed = every_epochs, seed

    def setup(  # type: ignore[override]  # see `Distiller.setup`
        self, student: Widths, teacher: Widths | None, *, num_rows: int
    ) -> None:
        assert isinstance(student, int)
        self.classifier = classifier_of(student, self.num_clusters, self.seed)
        self.register_buffer("labels", torch.full((num_rows,), -1))
        self.register_buffer("weights", torch.zeros(self.num_clusters))

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        refuse_few_samples("deepcluster", self.num_clusters, facts.num_samples)

    def forward(
        self, student: Float[Tensor, "B D"], *, indices: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        return classified(self.classifier(student), self.labels[indices], self.weights)

    def is_episode_due(self, progress: Progress) -> bool:
        return progress.epoch % self.every_epochs == 0

    @torch.no_grad()
    def start_episode(
        self,
        teacher: Float[Tensor, "B E"],
        *,
        indices: Int[Tensor, " B"],
        progress: Progress,
    ) -> Sequence[nn.Parameter]:
        if not self.is_episode_due(progress):
            return ()
        samples = gather_samples(teacher, indices)
        labels = cluster(
            samples,
            self.num_clusters,
            components=self.components,
            num_iterations=self.num_iterations,
            seed=self.seed + progress.epoch,
            name="deepcluster",
        )
        self.labels.fill_(-1)
        self.labels[samples.indices] = labels
        self.weights.copy_(balanced_weights(labels, self.num_clusters, self.balance))
        return restart(self.classifier, self.seed + progress.epoch)
