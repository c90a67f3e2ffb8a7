"""Ranks of images among captions and of captions among images, and what random features reach."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vlkd_cli.distributed.collectives import sum_without_grad
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.numerics.precision import matrix_precision

_LANES = 8
_OWN_AT_ONCE = {"cpu": 512, "cuda": 1 << 16}
"""Pairs whose own scores are computed together."""


class PairRanks(NamedTuple):
    """1-based ranks: of each image's best own text among all texts `[N]`, and of each text's image
    among all images `[M]`; int64."""

    of_texts: Tensor
    of_images: Tensor


def pair_ranks(
    images: Tensor, texts: Tensor, counts: Tensor, *, budget_bytes: int | None = None
) -> PairRanks:
    """Ranks by inner product in both directions, one block of scores at a time, on the device of
    the features.

    A candidate with the same score as the own one is ahead if it comes first, so that equal
    features for everything rank at chance and not at 1. Scores that differ by no more than the
    rounding of a float32 product (sqrt(D) * 2^-24 of the lengths) count as equal. Features that
    are not numbers rank last. Each rank of the process group computes some of the blocks; the
    answer is the same on all of them.

    Args:
        images: `[N, D]` float32.
        texts: `[M, D]`, those of image 0 first, then those of image 1, ...
        counts: `[N]` int64, how many texts are an image's own; at least 1, M in all.
        budget_bytes: largest block of scores; by default 8 MiB on a CPU, 256 MiB elsewhere.
    """
    own = _OwnScores.of(images, texts, counts.to(images.device))
    blocks: _OnCPU | _OnDevice = (_OnDevice if images.is_cuda else _OnCPU)(own)
    budget_bytes = budget_bytes or blocks.budget_bytes
    width = -(-len(texts) // _LANES) * _LANES
    height = max(1, min(blocks.most_rows, len(images), budget_bytes // (4 * width)))
    of_texts, of_images = torch.zeros_like(own.best), torch.zeros_like(own.owner)
    room = images.new_zeros(height, width)
    for number, start in enumerate(range(0, len(images), height)):
        if number % world_size() != rank():
            continue
        block = slice(start, min(start + height, len(images)))
        scores = room[: block.stop - start]
        with matrix_precision("highest", images.device):
            torch.mm(images[block], texts.T, out=scores[:, : len(texts)])
        of_texts[block] = blocks.texts_ahead(scores[:, : len(texts)], block)
        of_images += blocks.images_ahead(scores, block)[: len(texts)]
    ahead = sum_without_grad(torch.cat([of_texts, of_images])).cpu()
    return PairRanks(*(ahead + 1).split([len(images), len(texts)]))


class _OwnScores(NamedTuple):
    """What candidates are compared with: bounds that a later candidate must exceed (`high`) and an
    earlier one only reach (`low`)."""

    first: Tensor
    """First text of each image, and M after the last."""
    owner: Tensor
    """Image of each text."""
    best: Tensor
    """Each image's best own text, the first of equals."""
    image_low: Tensor
    image_high: Tensor
    text_low: Tensor
    text_high: Tensor

    @classmethod
    def of(cls, images: Tensor, texts: Tensor, counts: Tensor) -> _OwnScores:
        owner = torch.repeat_interleave(torch.arange(len(images), device=images.device), counts)
        if len(owner) != len(texts) or bool((counts < 1).any()):
            raise ValueError(f"{len(texts)} texts, and counts of {len(owner)}; each at least 1")
        number = torch.arange(len(texts), device=images.device)
        at_once = _OWN_AT_ONCE["cuda" if images.is_cuda else "cpu"]
        own = torch.cat(
            [
                torch.linalg.vecdot(images[part].double(), texts[own_texts].double())
                for part, own_texts in zip(owner.split(at_once), number.split(at_once), strict=True)
            ]
        )
        best = own.new_full((len(images),), -torch.inf).scatter_reduce_(0, owner, own, "amax")
        at = torch.where(own == best[owner], number, len(texts) - 1)
        equal = 2.0**-24 * images.shape[1] ** 0.5
        lengths = images.norm(dim=1), texts.norm(dim=1)
        around_images = (equal * lengths[0] * lengths[1].max()).double()
        around_texts = (equal * lengths[1] * lengths[0].max()).double()
        return cls(
            F.pad(counts.cumsum(0), (1, 0)),
            owner,
            torch.full_like(counts, len(texts) - 1).scatter_reduce_(0, owner, at, "amin"),
            (best - around_images).float(),
            (best + around_images).float(),
            (own - around_texts).float(),
            (own + around_texts).float(),
        )


class _OnDevice:
    """Marks of a whole block at once."""

    budget_bytes, most_rows = 256 << 20, 1 << 20

    def __init__(self, own: _OwnScores) -> None:
        self.own = own
        self.image_low, self.text_low = (_below(each) for each in (own.image_low, own.text_low))
        self.texts = torch.arange(len(own.owner), device=own.owner.device)

    def texts_ahead(self, scores: Tensor, block: slice) -> Tensor:
        """How many texts are ahead of each image's best own one."""
        best = self.own.best[block, None]
        bounds = torch.where(
            self.texts < best, self.image_low[block, None], self.own.image_high[block, None]
        )
        is_behind = (scores <= bounds).scatter_(1, best, True)
        return scores.shape[1] - is_behind.sum(1)

    def images_ahead(self, scores: Tensor, block: slice) -> Tensor:
        """How many images of a block are ahead of each text's own one."""
        image = torch.arange(block.start, block.stop, device=scores.device)[:, None]
        owner = self.own.owner
        bounds = torch.where(image < owner, self.text_low, self.own.text_high)
        is_behind = (scores[:, : len(owner)] <= bounds).logical_or_(image == owner)
        return len(scores) - is_behind.sum(0)


class _OnCPU:
    """Marks row by row, and eight columns at a time, in blocks that stay near the cache."""

    budget_bytes, most_rows = 8 << 20, 248
    """As many rows as can be added up in one byte."""

    def __init__(self, own: _OwnScores) -> None:
        self.own, self.first = own, own.first.tolist()
        self.best = own.best.tolist()
        self.low, self.high = own.image_low.numpy(), own.image_high.numpy()

    def texts_ahead(self, scores: Tensor, block: slice) -> Tensor:
        """How many texts are ahead of each image's best own one. Counted as all that are not
        behind, so that what is not a number is not taken for smaller."""
        ahead = []
        for image, row in zip(range(block.start, block.stop), scores.numpy(), strict=True):
            position = self.best[image]
            behind = np.count_nonzero(row[:position] < self.low[image])
            behind += np.count_nonzero(row[position + 1 :] <= self.high[image])
            ahead.append(len(row) - 1 - int(behind))
        return torch.tensor(ahead)

    def images_ahead(self, scores: Tensor, block: slice) -> Tensor:
        """How many images of a block are ahead of each text's own one, `[width]`."""
        own, begin, end = self.own, self.first[block.start], self.first[block.stop]
        # Images of this block come after the own one of texts before `begin`, and before that of
        # texts from `end` on.
        bounds = torch.zeros(scores.shape[1])
        bounds[:begin] = own.text_high[:begin]
        bounds[end : len(own.owner)] = _below(own.text_low[end:])
        marks = scores <= bounds
        # A byte of each of the eight lanes of a word counts up to 255 marks.
        behind = marks.view(torch.int64).sum(0).view(torch.uint8).long()
        ahead = len(scores) - behind
        middle = scores[:, begin:end]
        image = torch.arange(block.start, block.stop)[:, None]
        owner = own.owner[begin:end]
        is_behind = torch.where(
            image < owner, middle < own.text_low[begin:end], middle <= own.text_high[begin:end]
        )
        ahead[begin:end] = (~is_behind & (image != owner)).sum(0)
        return ahead


def _below(values: Tensor) -> Tensor:
    """The next lower float32."""
    return values.nextafter(values.new_tensor(-torch.inf))


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
    for step in range(min(k, num_candidates)):
        miss *= np.clip((num_candidates - own - step) / (num_candidates - step), 0, 1)
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
