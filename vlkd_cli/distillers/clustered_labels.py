"""Cluster labels of all samples, what `deepcluster` and `odc` learn from."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vlkd_cli.distillers.labeled_rows import mean_over_counted
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.distributed.collectives import gather_ragged
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.numerics.kmeans import kmeans


class Samples(NamedTuple):
    """Features of an epoch's samples, each once, in the order of the data; equal on every rank."""

    indices: Int[Tensor, " S"]
    features: Float[Tensor, "S D"]


def gather_samples(features: Float[Tensor, "b D"], indices: Int[Tensor, " b"]) -> Samples:
    """The samples of all ranks; one that came twice counts once."""
    everywhere, rows = gather_ragged(indices), gather_ragged(features)
    order = everywhere.argsort(stable=True)
    first = torch.ones(len(order), dtype=torch.bool, device=order.device)
    first[1:] = everywhere[order][1:] != everywhere[order][:-1]
    first_rows = order[first]
    return Samples(everywhere[first_rows], rows[first_rows])


def refuse_few_samples(name: str, num_clusters: int, num_samples: int) -> None:
    """
    Raises:
        DataError: an epoch has fewer samples than clusters.
    """
    if num_samples < num_clusters:
        raise DataError(
            f"distiller '{name}' forms {num_clusters} clusters, and the epoch has only"
            f" {num_samples} samples. Lower num_clusters."
        )


def cluster(
    samples: Samples,
    num_clusters: int,
    *,
    components: int,
    num_iterations: int,
    seed: int,
    name: str,
) -> Int[Tensor, " S"]:
    """k-means on whitened features of length 1.

    Raises:
        DataError: there are fewer samples than clusters.
        UserError: features are not finite.
    """
    refuse_few_samples(name, num_clusters, len(samples.indices))
    broken = int((~samples.features.isfinite()).any(dim=1).sum())
    if broken:
        raise UserError(
            f"distiller '{name}' cannot cluster the samples of this epoch: the features of {broken}"
            f" of {len(samples.indices)} are not finite. Lower optimizer.lr, or use"
            " train.precision: bf16 or fp32; the last good checkpoint is still there."
        )
    rows = whitened(samples.features, components)
    return kmeans(rows, num_clusters, num_iterations=num_iterations, seed=seed).labels


def whitened(features: Float[Tensor, "N D"], components: int) -> Float[Tensor, "N C"]:
    """Rows on their first principal components, each component of unit variance, rows of length 1.

    Source: Caron et al., DeepCluster, arXiv:1807.05520, section 3.3; faiss' PCAMatrix with
    eigen_power -0.5.
    """
    centered = features.double() - features.double().mean(dim=0)
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(centered))
    # Ascending; directions without variance would only add noise.
    num_components = min(components, int((variances > variances[-1] * 1e-12).sum()))
    largest = slice(len(variances) - num_components, None)
    rows = centered @ directions[:, largest] / variances[largest].sqrt()
    return unit(rows.flip(1)).to(features.dtype)


def balanced_weights(
    labels: Int[Tensor, " S"], num_clusters: int, balance: float
) -> Float[Tensor, " C"]:
    """count^-balance of each cluster, scaled to mean 1 over the samples; 0 for an empty one."""
    counts = torch.bincount(labels, minlength=num_clusters).double()
    weights = counts.clamp_min(1).pow(-balance) * (counts > 0)
    return weights * len(labels) / (weights * counts).sum()


def classified(
    logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], weights: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    """Cross-entropy weighted by cluster, a mean over the rows of all ranks that have one (0 and
    above)."""
    has_cluster = labels >= 0
    labels = labels.clamp_min(0)
    per_row = F.cross_entropy(logits, labels, reduction="none")
    weighted = per_row * weights.to(per_row.dtype)[labels] * has_cluster
    return mean_over_counted(weighted.sum(), has_cluster.sum())


def classifier_of(width: int, num_clusters: int, seed: int) -> nn.Linear:
    """A linear classifier with the same start on every rank, whatever its random state."""
    layer = nn.Linear(width, num_clusters)
    restart(layer, seed)
    return layer


@torch.no_grad()
def restart(layer: nn.Linear, seed: int) -> list[nn.Parameter]:
    """Give the classifier new random weights, for new clusters; returns its parameters."""
    generator = torch.Generator().manual_seed(seed)
    layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.01)
    layer.bias.zero_()
    return list(layer.parameters())
