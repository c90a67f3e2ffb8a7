"""Exact nearest neighbours by inner product in a table that is at hand, without sorting what cannot
win.

`topk` is for rows that come block by block and for lists whose ties must be ordered; this is
several times faster where neither matters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# A query block's scores stay near the cache; the candidates are cut into groups of this many.
BLOCK_BYTES = 24 << 20
GROUP = 64


class Neighbours(NamedTuple):
    """`similarity` `[N, k]` float32 in falling order and the `rows` `[N, k]` int64 of the
    candidates."""

    similarity: Tensor
    rows: Tensor


def nearest(
    queries: Tensor, candidates: Tensor, k: int, *, rough: bool | None = None
) -> Neighbours:
    """The k candidates with the largest inner product for each query.

    Scores are computed for a block of queries at a time. The maxima of groups of candidates give a
    bound that the k-th best score cannot be below, so that only k groups are looked into. Where the
    processor multiplies bfloat16 fast, that search runs in bfloat16 and whatever could be among the
    first k within its rounding error is scored again in float32: the answer is exact.

    Args:
        queries: `[N, D]` float32.
        candidates: `[M, D]` float32.
        k: at most M.
        rough: search in bfloat16 first; by default where it pays.
    """
    k = min(k, len(candidates))
    groups = -(-len(candidates) // GROUP)
    if rough is None:
        rough = queries.device.type == "cpu" and _multiplies_bfloat16_fast() and groups > 4 * k
    if groups <= 4 * k or queries.device.type != "cpu":
        return _plain(queries, candidates, k)
    search = _RoughSearch(candidates, k) if rough else _Search(candidates, k)
    rows = max(1, BLOCK_BYTES // (search.bytes_per_score * groups * GROUP))
    parts = [search(queries[start : start + rows]) for start in range(0, len(queries), rows)]
    return Neighbours(
        torch.cat([part.similarity for part in parts]), torch.cat([part.rows for part in parts])
    )


def _plain(queries: Tensor, candidates: Tensor, k: int) -> Neighbours:
    rows = max(1, BLOCK_BYTES // (4 * max(len(candidates), 1)))
    if queries.device.type != "cpu":
        rows *= 32
    parts = [
        (queries[start : start + rows] @ candidates.T).topk(k, dim=1)
        for start in range(0, len(queries), rows)
    ]
    if not parts:
        return Neighbours(
            queries.new_zeros(0, k), torch.zeros(0, k, dtype=torch.int64, device=queries.device)
        )
    return Neighbours(
        torch.cat([values for values, _ in parts]), torch.cat([index for _, index in parts])
    )


class _Search:
    """The k best of all candidates for a block of queries, in float32."""

    bytes_per_score = 4
    dtype = torch.float32

    def __init__(self, candidates: Tensor, k: int) -> None:
        self.candidates, self.k = candidates, k
        self.groups = -(-len(candidates) // GROUP)
        # Group g holds the candidates g, g + groups, g + 2 groups, ...: the maximum over a group
        # then runs over contiguous memory.
        self.scored = candidates.to(self.dtype)
        self.scores = torch.empty(0, 0)

    def __call__(self, queries: Tensor) -> Neighbours:
        values, index = self.shortlist(queries, self.k)
        return Neighbours(values.float(), index)

    def shortlist(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best `count` scores of each query and their candidates."""
        scores = self._room(len(queries))
        torch.mm(queries.to(self.dtype), self.scored.T, out=scores[:, : len(self.scored)])
        grouped = scores.view(len(queries), GROUP, self.groups)
        # The k best elements lie in the k groups with the largest maxima (or are equal to elements
        # of those).
        _, best = grouped.amax(1).topk(min(count, self.groups), dim=1, sorted=False)
        inside = grouped.gather(2, best[:, None, :].expand(-1, GROUP, -1)).flatten(1)
        values, position = inside.topk(count, dim=1)
        group = best.gather(1, position % best.shape[1])
        return values, group + position // best.shape[1] * self.groups

    def _room(self, rows: int) -> Tensor:
        if len(self.scores) != rows:
            self.scores = torch.full((rows, self.groups * GROUP), -torch.inf, dtype=self.dtype)
        return self.scores


class _RoughSearch(_Search):
    """The same with a shortlist in bfloat16 that is scored again in float32."""

    bytes_per_score = 2
    dtype = torch.bfloat16

    def __init__(self, candidates: Tensor, k: int) -> None:
        super().__init__(candidates, k)
        self.exact = _Search(candidates, k)
        self.length = self.candidates.norm(dim=1).max()
        self.lost = (candidates - self.scored.float()).norm(dim=1).max()

    def __call__(self, queries: Tensor) -> Neighbours:
        count = min(2 * self.k + 24, self.groups)
        values, index = self.shortlist(queries, count)
        vectors = self.candidates[index.flatten()].view(*index.shape, -1)
        similarity, order = torch.bmm(vectors, queries[:, :, None]).squeeze(2).topk(self.k, dim=1)
        index = index.gather(1, order)
        # |q.c - q'.c'| <= |q - q'| |c| + |q'| |c - c'| (Cauchy-Schwarz), and the score itself is
        # rounded to 8 bits.
        rounded = queries.to(self.dtype).float()
        error = (queries - rounded).norm(dim=1) * self.length + rounded.norm(dim=1) * self.lost
        last = values[:, -1].float()
        unsure = (last + last.abs() / 128 + error >= similarity[:, -1]).nonzero().flatten()
        if len(unsure):
            again = self.exact(queries[unsure])
            similarity[unsure], index[unsure] = again.similarity, again.rows
        return Neighbours(similarity, index)


def _multiplies_bfloat16_fast() -> bool:
    """Whether the processor has matrix units for bfloat16; without them bfloat16 is slower than
    float32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())
