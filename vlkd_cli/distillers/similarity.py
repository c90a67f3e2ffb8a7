"""What the contrastive objectives share: unit rows, and logits of a rank's rows against all
rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distributed.collectives import gather
from vlkd_cli.distributed.runtime import rank

Pair = tuple[Float[Tensor, "B _"], Float[Tensor, "B _"]]
"""Image and text rows of one model."""


def unit(features: Float[Tensor, "... D"], smallest: float = 1e-12) -> Float[Tensor, "... D"]:
    """Rows scaled to length 1. A zero row (length up to `smallest`) becomes 0 and gets no gradient.

    Where there is no such row this is `torch.nn.functional.normalize`, which would send a gradient
    of 1 / smallest through one.
    """
    length = features.norm(dim=-1, keepdim=True)
    scaled: Tensor = features / length.masked_fill(length <= smallest, torch.inf)
    return scaled


def own_columns(rows: int, device: torch.device) -> Tensor:
    """The positions of this rank's rows among the gathered rows, `[B]`."""
    return torch.arange(rank() * rows, (rank() + 1) * rows, device=device)


def cross_logits(
    image: Float[Tensor, "B D"], text: Float[Tensor, "B D"], scale: Tensor | float
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
    """Scaled similarities of this rank's images to all texts, and of its texts to all images, with
    the exact gradient over ranks."""
    return scale * image @ gather(text).T, scale * text @ gather(image).T


def soft_cross_entropy(
    targets: Float[Tensor, "B N"], logits: Float[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """CE(P, Z): mean over rows of the cross-entropy from target distributions to the softmax of the
    logits."""
    # lse(z) - <p, z>, not -<p, log_softmax(z)>: a target of 0 then never meets an infinite
    # logarithm.
    return (logits.logsumexp(dim=-1) - (targets * logits).sum(dim=-1)).mean()


def soft_kl(
    targets_logits: Float[Tensor, "B N"], logits: Float[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """KL(Q, Z): mean over rows of the divergence from softmax(Q) to softmax(Z)."""
    log_targets = targets_logits.log_softmax(dim=-1)
    return (log_targets.exp() * (log_targets - logits.log_softmax(dim=-1))).sum(dim=-1).mean()
