"""Contrast with the prototypes of the other modality, found again for each episode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.distiller import DataFacts, Widths, require_equal_width, widths_of
from vlkd_cli.distillers.logit_scale import CLIP_SCALE, ScaledDistiller
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_ragged, sum_without_grad
from vlkd_cli.distributed.runtime import world_size
from vlkd_cli.errors import DataError
from vlkd_cli.numerics.kmeans import class_means, kmeans
from vlkd_cli.recipe.types import NonNegative, NonNegativeInt, Positive, PositiveInt, Progress

Rows = Float[Tensor, "B D"]
TwoRows = tuple[Float[Tensor, "B D"], Float[Tensor, "B C"]]
Student = Rows | TwoRows
Teacher = Rows | TwoRows | tuple[Float[Tensor, "B D"], Float[Tensor, "B C"], Float[Tensor, "B E"]]
STATE = ("episode_indices", "labels", "centroids", "means")


class ProtoCLIP(ScaledDistiller):
    """InfoNCE, plus each modality's cross-entropy to the clusters that the other modality's
    features form over the episode.

    At the start of an epoch the features of its samples are clustered, separately for each
    modality (Euclidean k-means, centroids not normalized). With L_p(a by b) the cross-entropy of
    proto_scale
    * a . C^T against b's clusters and w the three weights, the loss is w_c * InfoNCE + w_p *
    (L_p(image by text) + L_p(text by image)) / 2 + w_e * (L_p(image by external) + L_p(text by
    external)) / 2.

    C holds the means of a's features over b's clusters (back-translated prototypes; an empty
    cluster's mean is zero and stays a choice), or b's own centroids. Targets are b's cluster, or
    softmax(c_label . c_k / target_temperature) among b's centroids; the external teacher's are
    always its clusters, met with back-translated prototypes.

    Sides are the image and the text feature. Where a side is a list, `[image.backbone, image]`, the
    first enters InfoNCE and the second is clustered; a third one on the teacher side is an external
    teacher's feature, of any width. Samples that the episode has not seen take no part in the
    prototype terms, and before the first episode there are none.

    Args:
        num_prototypes: clusters of each modality.
        contrastive_weight, prototype_weight, external_weight: weights of the terms.
        back_translation: whether prototypes are the student modality's own means (PBT).
        target_temperature: spreads the targets over similar clusters; null for the cluster alone.
        logit_scale: initial factor on the cosines of InfoNCE (not its logarithm).
        proto_scale: initial factor on the products with prototypes.
        max_logit_scale: highest value of both, which stay within [1, max_logit_scale] after each
            step; null leaves them unbounded.
        contrastive_episodes: epochs at the start that only InfoNCE trains.
        num_iterations, num_restarts: of k-means; the best of the restarts counts.
        seed: of the clustering.

    Source: Chen et al., ProtoCLIP, TNNLS 2023, arXiv:2206.10996; megvii-research/protoclip,
    src/training/{loss,clustering}.py, with the values of its README. Differs in leaving unvisited
    samples out of the clustering, and in starting small clusterings from points sampled far apart.
    """

    direction = "symmetric"
    minimum_batch = 2
    crosses_ranks = "features of one side, with gradient; at an episode's start all its features"
    paper = "Chen et al. 2023, arXiv:2206.10996"
    formula = (
        r"L = w_c L_{\mathrm{InfoNCE}}"
        r" + \frac{w_p}{2} \left[ L_p(x, C_x, q^y) + L_p(y, C_y, q^x) \right]"
        r" + \frac{w_e}{2} \left[ L_p(x, E_x, q^e) + L_p(y, E_y, q^e) \right],"
        r" \quad L_p(a, C, q) = -\frac{1}{N} \sum_i"
        r" q_i \cdot \log \mathrm{softmax}(s_p \hat{a}_i C^{\top})"
    )

    log_proto_scale: Tensor

    def __init__(
        self,
        *,
        num_prototypes: PositiveInt = 20000,
        contrastive_weight: NonNegative = 1.0,
        prototype_weight: NonNegative = 1.0,
        external_weight: NonNegative = 1.0,
        back_translation: bool = True,
        target_temperature: Positive | None = 0.01,
        logit_scale: Positive = CLIP_SCALE,
        proto_scale: Positive = CLIP_SCALE,
        max_logit_scale: Positive | None = 100.0,
        contrastive_episodes: NonNegativeInt = 1,
        num_iterations: PositiveInt = 20,
        num_restarts: PositiveInt = 3,
        seed: NonNegativeInt = 1234,
    ) -> None:
        super().__init__(logit_scale=logit_scale, max_logit_scale=max_logit_scale)
        self.num_prototypes = num_prototypes
        self.contrastive_weight = contrastive_weight
        self.prototype_weight = prototype_weight
        self.external_weight = external_weight
        self.back_translation = back_translation
        self.target_temperature = target_temperature
        self.contrastive_episodes = contrastive_episodes
        self.num_iterations, self.num_restarts, self.seed = num_iterations, num_restarts, seed
        self.add_scalar("log_proto_scale", math.log(proto_scale))
        # Rows: the episode's samples by their position in the data set; clusters of image, text and
        # external features; centroids of image and text; means of image by text, text by image,
        # image by external and text by external. All empty until an episode starts.
        self.register_buffer("episode_indices", torch.empty(0, dtype=torch.int64))
        self.register_buffer("labels", torch.empty(0, 0, dtype=torch.int64))
        self.register_buffer("centroids", torch.empty(0, 0, 0))
        self.register_buffer("means", torch.empty(0, 0, 0))

    def setup(self, student: Widths, teacher: Widths | None) -> None:
        assert teacher is not None
        # The clustered features, where one of the sides has no second output.
        require_equal_width(self, widths_of(student)[-1], widths_of(teacher)[:2][-1])

    def check_data(self, facts: DataFacts) -> None:
        super().check_data(facts)
        if facts.num_samples < self.num_prototypes:
            raise DataError(
                f"distiller 'protoclip' forms {self.num_prototypes} clusters, but an episode has"
                f" only {facts.num_samples} samples. Lower num_prototypes, or raise"
                " data.episode_samples."
            )

    def forward(
        self, student: Student, teacher: Teacher, *, indices: Int[Tensor, "B"]
    ) -> Float[Tensor, ""]:
        (image, image_projected, _), (text, text_projected, _) = _parts(student), _parts(teacher)
        # Scales and features always take part: DDP expects the same parameters at every step, and
        # the heads of clustered features have nothing else to learn from before the first episode.
        loss = 0 * (self.log_scale + self.log_proto_scale)
        loss = loss + 0 * (image.sum() + text.sum() + image_projected.sum() + text_projected.sum())
        if self.contrastive_weight:
            loss = loss + self.contrastive_weight * blocked_infonce(image, text, self.scale)
        if len(self.episode_indices) == 0:
            return loss
        found = torch.searchsorted(self.episode_indices, indices)
        position = found.clamp_max(len(self.episode_indices) - 1)
        seen = self.episode_indices[position] == indices
        image_labels, text_labels, *external = self.labels[:, position]
        features = unit(image_projected), unit(text_projected)
        prototypes = self.means[:2] if self.back_translation else self.centroids.flip(0)
        if self.prototype_weight:
            by_text = self.prototype_term(
                features[0], prototypes[0], text_labels, seen, self.centroids[1]
            )
            by_image = self.prototype_term(
                features[1], prototypes[1], image_labels, seen, self.centroids[0]
            )
            loss = loss + self.prototype_weight / 2 * (by_text + by_image)
        if external and self.external_weight:
            reached = zip(features, self.means[2:], strict=True)
            terms = [
                self.prototype_term(side, means, external[0], seen, None) for side, means in reached
            ]
            loss = loss + self.external_weight / 2 * torch.stack(terms).sum()
        return loss

    def prototype_term(
        self,
        features: Float[Tensor, "B D"],
        prototypes: Float[Tensor, "K D"],
        labels: Int[Tensor, "B"],
        seen: Tensor,
        teacher_centroids: Float[Tensor, "K _"] | None,
    ) -> Float[Tensor, ""]:
        """Mean over the seen rows of all ranks of the cross-entropy to the prototypes; 0 where none
        was seen.

        Args:
            teacher_centroids: what the soft targets come from; None for the clusters themselves.
        """
        logits = self.log_proto_scale.exp() * features @ prototypes.to(features.dtype).T
        if self.target_temperature is None or teacher_centroids is None:
            matched = logits.gather(1, labels[:, None])[:, 0]
        else:
            centroids = teacher_centroids.to(features.dtype)
            matched = (
                (centroids[labels] @ centroids.T / self.target_temperature).softmax(dim=1) * logits
            ).sum(dim=1)
        total = torch.where(seen, logits.logsumexp(dim=1) - matched, 0).sum()
        return world_size() * total / sum_without_grad(seen.sum()).clamp_min(1)

    def is_episode_due(self, progress: Progress) -> bool:
        return progress.epoch >= self.contrastive_episodes

    @torch.no_grad()
    def start_episode(
        self,
        student: Student,
        teacher: Teacher,
        *,
        indices: Int[Tensor, "B"],
        progress: Progress,
    ) -> Sequence[nn.Parameter]:
        """Cluster the episode: features of this rank's samples (ranks may hold different numbers)
        and their positions in the data set."""
        if not self.is_episode_due(progress):
            return ()
        everywhere = gather_ragged(indices)
        # Sorted by position, so that how samples lie on ranks does not matter; a sample that
        # occurs twice counts once.
        order = everywhere.argsort(stable=True)
        first = torch.ones(len(order), dtype=torch.bool, device=order.device)
        first[1:] = everywhere[order][1:] != everywhere[order][:-1]
        distinct = order[first]
        (_, image, _), (_, text, external) = _parts(student), _parts(teacher)
        image, text = gather_ragged(unit(image))[distinct], gather_ragged(unit(text))[distinct]
        if len(distinct) < self.num_prototypes:
            raise DataError(
                f"distiller 'protoclip' forms {self.num_prototypes} clusters, but the episode has"
                f" only {len(distinct)} samples. Lower num_prototypes."
            )
        found = [self._cluster(image), self._cluster(text)]
        labels, centroids = (
            [labels for _, labels in found],
            torch.stack([centroids for centroids, _ in found]),
        )
        means = [
            class_means(image, labels[1], self.num_prototypes),
            class_means(text, labels[0], self.num_prototypes),
        ]
        if external is not None:
            labels.append(self._cluster(gather_ragged(unit(external))[distinct])[1])
            means += [class_means(side, labels[2], self.num_prototypes) for side in (image, text)]
        self.episode_indices, self.labels = everywhere[distinct], torch.stack(labels)
        self.centroids, self.means = centroids, torch.stack(means)
        return ()

    def commit(self, progress: Progress) -> None:
        super().commit(progress)
        self.clamp(self.log_proto_scale)

    def _cluster(self, features: Tensor) -> tuple[Tensor, Tensor]:
        clusters = kmeans(
            features,
            self.num_prototypes,
            num_iterations=self.num_iterations,
            num_restarts=self.num_restarts,
            seed=self.seed,
        )
        return clusters.centroids, clusters.labels

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *arguments: object
    ) -> None:
        # An episode's size is known only once it has started: take the shapes of the checkpoint.
        for name in STATE:
            if prefix + name in state_dict:
                saved = state_dict[prefix + name]
                setattr(
                    self,
                    name,
                    torch.empty(saved.shape, dtype=saved.dtype, device=getattr(self, name).device),
                )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _parts(side: Student | Teacher) -> tuple[Tensor, Tensor, Tensor | None]:
    """The feature for InfoNCE, the one that is clustered, and an external teacher's."""
    if isinstance(side, Tensor):
        return side, side, None
    return side[0], side[min(1, len(side) - 1)], side[2] if len(side) > 2 else None
