"""Online deep clustering: labels, bank and centroids that move with every step."""

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
)
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.numerics.kmeans import kmeans
from vlkd_cli.recipe.types import NonNegative, NonNegativeInt, PositiveInt, Probability, Progress


class ODC(Distiller):
    """Classify samples by clusters whose labels and centroids follow the features step by step.

    The first clustering is that of `deepcluster`, from the teacher addresses before the first
    epoch. After each step the bank rows of the batch move towards their features and take the label
    of the nearest centroid; every `centroid_steps` steps centroids become the means of their bank
    rows, and clusters below `min_cluster` dissolve into the nearest other and take half of the
    largest one. L = mean of weight(cluster) * CE.

    Args:
        num_clusters: clusters, and outputs of the classifier.
        momentum: fraction of a bank row that is replaced by the new feature.
        min_cluster: samples below which a cluster dissolves.
        centroid_steps: optimizer steps between two updates of the centroids.
        balance: a cluster of n samples weighs n^-balance.
        components: principal components of the first clustering.
        num_iterations: of its k-means.
        seed: of k-means and of the classifier.

    Source: Zhan et al., Online Deep Clustering for Unsupervised Representation Learning,
    CVPR 2020, arXiv:2006.10645, section 3.2; open-mmlab/mmselfsup, memories/odc_memory.py. Differs
    in saving bank and labels in the checkpoint, equal on every rank.
    """

    direction = "one_way"
    crosses_ranks = "features and indices that enter the bank; features of all samples once"
    paper = "Zhan et al., CVPR 2020, arXiv:2006.10645"
    formula = (
        r"L = -\frac{1}{N} \sum_i w_{c_i} \log \mathrm{softmax}(W s_i + b)_{c_i},"
        r" \quad w_c = \frac{S n_c^{-\beta}}{\sum_k n_k^{1 - \beta}},"
        r" \quad c_i = \mathrm{argmax}_k \, \mu_k \cdot m_i"
    )

    bank: Tensor
    labels: Tensor
    centroids: Tensor
    weights: Tensor
    classifier: nn.Linear

    def __init__(
        self,
        *,
        num_clusters: PositiveInt = 10000,
        momentum: Probability = 0.5,
        min_cluster: PositiveInt = 20,
        centroid_steps: PositiveInt = 10,
        balance: NonNegative = 0.5,
        components: PositiveInt = 256,
        num_iterations: PositiveInt = 20,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.num_clusters, self.momentum = num_clusters, momentum
        self.min_cluster, self.centroid_steps = min_cluster, centroid_steps
        self.balance, self.components = balance, components
        self.num_iterations, self.seed = num_iterations, seed

    def setup(  # type: ignore[override]  # see `Distiller.setup`
        self, student: Widths, teacher: Widths | None, *, num_rows: int
    ) -> None:
        assert isinstance(student, int)
        self.classifier = classifier_of(student, self.num_clusters, self.seed)
        self.register_buffer("bank", torch.zeros(num_rows, student))
        self.register_buffer("labels", torch.full((num_rows,), -1))
        self.register_buffer("centroids", torch.zeros(self.num_clusters, student))
        self.register_buffer("weights", torch.zeros(self.num_clusters))

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        refuse_few_samples("odc", self.num_clusters, facts.num_samples)

    def forward(
        self, student: Float[Tensor, "B D"], *, indices: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        self.stage(student, indices)
        return classified(self.classifier(student), self.labels[indices], self.weights)

    def is_episode_due(self, progress: Progress) -> bool:
        return progress.epoch == 0 and not bool((self.labels >= 0).any())

    @torch.no_grad()
    def start_episode(
        self,
        teacher: Float[Tensor, "B D"],
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
            seed=self.seed,
            name="odc",
        )
        self.start(samples.indices, samples.features, labels)
        return ()

    @torch.no_grad()
    def start(
        self,
        indices: Int[Tensor, " S"],
        features: Float[Tensor, "S D"],
        labels: Int[Tensor, " S"],
    ) -> None:
        """Take in the first features and labels of the samples."""
        self.bank[indices] = unit(features).to(self.bank.dtype)
        self.labels[indices] = labels
        self._move_centroids()
        self._reweigh()

    def commit(self, progress: Progress) -> None:
        staged = self.take_staged()
        if not staged:
            return
        # Rows in the order of the data, so that batches of one step are one batch.
        features = torch.cat([gather_without_grad(unit(features)) for features, _ in staged])
        self._remember(features, torch.cat([gather_without_grad(rows) for _, rows in staged]))
        if (progress.step + 1) % self.centroid_steps == 0:
            self._move_centroids()
            self._dissolve_small(progress.step)
            self._move_centroids()
        self._reweigh()

    def _remember(self, features: Float[Tensor, "N D"], rows: Int[Tensor, " N"]) -> None:
        known = self.labels[rows] >= 0
        features, rows = features[known].to(self.bank.dtype), rows[known]
        # A sample that comes twice counts with its later row, on any device.
        last = torch.zeros(len(self.bank), dtype=torch.int64, device=rows.device)
        last.scatter_reduce_(0, rows, torch.arange(len(rows), device=rows.device), "amax")
        seen = rows.unique()
        moved = self.bank[seen] * (1 - self.momentum) + features[last[seen]] * self.momentum
        self.bank[seen] = unit(moved)
        self.labels[seen] = (self.bank[seen] @ self.centroids.T).argmax(dim=1)

    def _members(self) -> tuple[Tensor, Tensor]:
        rows = (self.labels >= 0).nonzero()[:, 0]
        return rows, self.labels[rows]

    def _move_centroids(self) -> None:
        rows, labels = self._members()
        sums = torch.zeros_like(self.centroids).index_add_(0, labels, self.bank[rows])
        counts = torch.bincount(labels, minlength=self.num_clusters)[:, None]
        # The centroid of an empty cluster stays.
        self.centroids.copy_(torch.where(counts > 0, sums / counts.clamp_min(1), self.centroids))

    def _reweigh(self) -> None:
        _, labels = self._members()
        if len(labels):
            self.weights.copy_(balanced_weights(labels, self.num_clusters, self.balance))

    def _dissolve_small(self, step: int) -> None:
        rows, labels = self._members()
        counts = torch.bincount(labels, minlength=self.num_clusters)
        small = (counts < self.min_cluster).nonzero()[:, 0]
        if len(small) == 0 or len(small) == self.num_clusters:
            return
        homeless = torch.isin(labels, small)
        scores = self.bank[rows[homeless]] @ self.centroids.T
        scores[:, small] = -torch.inf
        labels[homeless] = scores.argmax(dim=1)
        for number in small.tolist():
            largest = int(torch.bincount(labels, minlength=self.num_clusters).argmax())
            members = (labels == largest).nonzero()[:, 0]
            if len(members) < 2:
                break
            halves = kmeans(self.bank[rows[members]], 2, num_iterations=20, seed=step).labels
            labels[members[halves == 1]] = number
            # The half that moved has a centroid from now on, the other one a new mean.
            for each in (number, largest):
                self.centroids[each] = self.bank[rows[labels == each]].mean(dim=0)
        self.labels[rows] = labels
