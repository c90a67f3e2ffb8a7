"""Ranks of images among captions and of captions among images, and what random features reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size

_LANES = 8
_BLOCK_ROWS = 248
"""Rows whose marks are added up in one byte."""


class PairRanks(NamedTuple):
    """1-based ranks: of each image's best own text among all texts `[N]`, and of each text's image
    among all images `[M]`; int64."""

    of_texts: Tensor
    of_images: Tensor


def pair_ranks(
    images: Tensor, texts: Tensor, counts: Tensor, *, budget_bytes: int = 8 << 20
) -> PairRanks:
    """Ranks by inner product in both directions, without ever holding all scores: one product of
    the two tables.

    A candidate that scores as much as the own one is ahead if it stands before it, so that equal
    features for everything rank at chance and not at 1. Scores that differ by no more than the
    rounding of a float32 product (sqrt(D) * 2^-24 of the lengths) count as equal. Features that
    are not numbers rank last. The blocks are dealt to the ranks of the process group; the answer
    is the same on all of them.

    Args:
        images: `[N, D]` float32, on the CPU like the other tensors.
        texts: `[M, D]`, those of image 0 first, then those of image 1, ...
        counts: `[N]` int64, how many texts are an image's own; at least 1, M in all.
        budget_bytes: largest block of scores.
    """
    own = _OwnScores.of(images, texts, counts)
    width = -(-len(texts) // _LANES) * _LANES
    height = max(1, min(_BLOCK_ROWS, len(images), budget_bytes // (4 * width)))
    of_texts = np.zeros(len(images), dtype=np.int64)
    of_images = np.zeros(len(texts), dtype=np.int64)
    room = torch.zeros(height, width)
    for number, start in enumerate(range(0, len(images), height)):
        if number % world_size() != rank():
            continue
        block = slice(start, min(start + height, len(images)))
        scores = room[: block.stop - start]
        torch.mm(images[block], texts.T, out=scores[:, : len(texts)])
        of_texts[block] = _texts_ahead(scores[:, : len(texts)].numpy(), own, block)
        of_images += _images_ahead(scores, own, block)[: len(texts)]
    ahead = sum_without_grad(torch.from_numpy(np.concatenate([of_texts, of_images])))
    return PairRanks(*(ahead + 1).split([len(images), len(texts)]))


class _OwnScores(NamedTuple):
    """What candidates are compared with: bounds that a later candidate must exceed (`high`) and an
    earlier one only reach (`low`)."""

    first: NDArray[np.int64]
    """First text of each image, and M behind the last."""
    owner: NDArray[np.int64]
    """Image of each text."""
    best: NDArray[np.int64]
    """Each image's best own text, the first of equals."""
    image_low: NDArray[np.float32]
    image_high: NDArray[np.float32]
    text_low: Tensor
    text_high: Tensor

    @classmethod
    def of(cls, images: Tensor, texts: Tensor, counts: Tensor) -> _OwnScores:
        owner = torch.repeat_interleave(torch.arange(len(images)), counts)
        if len(owner) != len(texts) or bool((counts < 1).any()):
            raise ValueError(f"{len(texts)} texts, and counts of {len(owner)}; each at least 1")
        own = torch.cat(
            [
                torch.linalg.vecdot(images[part].double(), texts[own_texts].double())
                for part, own_texts in zip(
                    owner.split(512), torch.arange(len(texts)).split(512), strict=True
                )
            ]
        )
        first = np.concatenate([[0], counts.cumsum(0).numpy()])
        best = np.maximum.reduceat(own.numpy(), first[:-1])
        at = np.where(own.numpy() == best[owner.numpy()], np.arange(len(texts)), len(texts))
        equal = 2.0**-24 * images.shape[1] ** 0.5
        lengths = images.norm(dim=1), texts.norm(dim=1)
        around_images = (equal * lengths[0] * lengths[1].max()).double().numpy()
        around_texts = (equal * lengths[1] * lengths[0].max()).double()
        return cls(
            first,
            owner.numpy(),
            np.minimum.reduceat(at, first[:-1]).clip(max=len(texts) - 1),
            (best - around_images).astype(np.float32),
            (best + around_images).astype(np.float32),
            (own - around_texts).float(),
            (own + around_texts).float(),
        )


def _texts_ahead(scores: NDArray[np.float32], own: _OwnScores, block: slice) -> list[int]:
    """How many texts are ahead of each image's best own one. Counted as all that are not behind, so
    that what is not a number is not taken for smaller."""
    ahead = []
    for image, row in zip(range(block.start, block.stop), scores, strict=True):
        position = own.best[image]
        behind = np.count_nonzero(row[:position] < own.image_low[image])
        behind += np.count_nonzero(row[position + 1 :] <= own.image_high[image])
        ahead.append(len(row) - 1 - int(behind))
    return ahead


def _images_ahead(scores: Tensor, own: _OwnScores, block: slice) -> NDArray[np.int64]:
    """How many images of a block are ahead of each text's own one, `[width]`."""
    begin, end = own.first[block.start], own.first[block.stop]
    # Images of this block stand after the own one of texts before `begin`, and before that of texts
    # from `end` on.
    bounds = torch.zeros(scores.shape[1])
    bounds[:begin] = own.text_high[:begin]
    bounds[end : len(own.owner)] = own.text_low[end:].nextafter(torch.tensor(-torch.inf))
    marks = scores <= bounds
    # A byte of each of the eight lanes of a word counts up to 255 marks.
    behind = marks.view(torch.int64).sum(0).view(torch.uint8).numpy().astype(np.int64)
    ahead = len(scores) - behind
    middle = scores[:, begin:end]
    image = torch.arange(block.start, block.stop)[:, None]
    owner = torch.from_numpy(own.owner[begin:end])
    is_behind = torch.where(
        image < owner, middle < own.text_low[begin:end], middle <= own.text_high[begin:end]
    )
    ahead[begin:end] = (~is_behind & (image != owner)).sum(0).numpy()
    return ahead


class RankScores(NamedTuple):
    """Recall at each k, and the mean and median of 1-based ranks."""

    recall: dict[int, float]
    mean_rank: float
    median_rank: float


def rank_scores(ranks: Tensor, ks: tuple[int, ...]) -> RankScores:
    """Summary of `[N]` 1-based ranks; the median of an even number is rounded down, as open_clip
    reports it."""
    numbers = ranks.double()
    median = float(np.floor(np.median(numbers.cpu().numpy() - 1)) + 1)
    return RankScores(
        {k: (ranks <= k).double().mean().item() for k in ks}, numbers.mean().item(), median
    )


def chance_recall(num_own: NDArray[np.int64], num_candidates: int, k: int) -> float:
    """Expected recall at k of a random order: 1 - C(M - m, k) / C(M, k), averaged over queries with
    m own candidates."""
    own, counts = np.unique(num_own, return_counts=True)
    miss = np.ones(len(own))
    for drawn in range(min(k, num_candidates)):
        miss *= np.clip((num_candidates - own - drawn) / (num_candidates - drawn), 0, 1)
    return float(((1 - miss) * counts).sum() / counts.sum())


def chance_median_rank(num_own: NDArray[np.int64], num_candidates: int) -> float:
    """The smallest k at which a random order finds half of the queries' own candidates."""
    low, high = 1, num_candidates
    while low < high:
        middle = (low + high) // 2
        if chance_recall(num_own, num_candidates, middle) >= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)


def chance_mean_rank(num_own: NDArray[np.int64], num_candidates: int) -> float:
    """Expected rank of the best of m own candidates in a random order of M: (M + 1) / (m + 1)."""
    return float(((num_candidates + 1) / (num_own + 1)).mean())
