"""Exact top-k of dot products over any number of rows, in bounded memory and with one rule for
ties."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_GROUP = 64
_PAIRS_AT_ONCE = 16384

Candidates = Literal["auto", "fp32", "bf16"]


class TopK:
    """The k best rows for every query, fed block by block: `add(rows)` as often as needed, then
    `result()`.

    A fast matrix product only proposes candidates: a row is dropped when its approximate score lies
    below the k-th best by more than the product can be wrong. What is left is scored again in
    float64 and rounded to float32, so the outcome depends neither on the precision of the
    proposals, nor on how rows are cut into blocks or spread over ranks, and equal rows tie exactly.
    Order: score descending, then key descending. Memory: the queries, one block of scores (at most
        1024 x `block_rows`), k entries a query.

    Args:
        queries: `[Q, D]` float; normalise both sides beforehand for cosine.
        k: how many rows to keep for each query.
        candidates: precision of the proposing product; "auto" takes bf16 where the CPU has matrix
            tiles (AMX) and fp32 elsewhere.
        block_rows: rows that are scored at once.
    """

    def __init__(
        self, queries: Tensor, k: int, *, candidates: Candidates = "auto", block_rows: int = 4096
    ) -> None:
        if k < 1 or queries.ndim != 2:
            raise ValueError(
                f"top-k needs k >= 1 and queries [Q, D]; got k={k} and shape {tuple(queries.shape)}"
            )
        self.queries = queries.detach().to(torch.float32).contiguous()
        self.k = k
        self.block_rows = max(block_rows - block_rows % _GROUP, _GROUP)
        self.dtype = _proposal_dtype(candidates, queries.device)
        self.num_rows = 0
        device = queries.device
        self._proposing = self.queries.to(self.dtype)
        self._query_norm = self.queries.norm(dim=1)
        self._query_error = (self._proposing.to(torch.float32) - self.queries).norm(dim=1)
        self._scores = torch.full((len(queries), k), -torch.inf, device=device)
        self._keys = torch.full((len(queries), k), -1, dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._num_waiting = 0

    def add(self, rows: Tensor, keys: Tensor | None = None) -> None:
        """Offer rows.

        Args:
            rows: `[n, D]`.
            keys: `[n]` int64, unique over all calls and >= 0: what `result` names the rows by, and
                what breaks ties; by default the rows' positions in the order they were offered.
        """
        if keys is None:
            keys = torch.arange(self.num_rows, self.num_rows + len(rows))
        self.num_rows += len(rows)
        device = self.queries.device
        for start in range(0, len(rows), self.block_rows):
            block = rows[start : start + self.block_rows].to(device=device, dtype=torch.float32)
            self._add_block(block, keys[start : start + self.block_rows].to(device))

    def result(self) -> tuple[Tensor, Tensor]:
        """Scores and keys, each `[Q, min(k, rows offered)]`, best first."""
        self._merge()
        width = min(self.k, self.num_rows)
        return self._scores[:, :width].clone(), self._keys[:, :width].clone()

    def _add_block(self, block: Tensor, keys: Tensor) -> None:
        proposing = block.to(self.dtype)
        norm = float(block.norm(dim=1).max())
        error = float((proposing.to(torch.float32) - block).norm(dim=1).max())
        for first in range(0, len(self.queries), 1024):
            part = slice(first, first + 1024)
            # |q.d - q'.d'| <= |q - q'| |d| + |q'| |d - d'|, and the sums inside the product add
            # their own rounding.
            slack = (
                self._query_error[part] * norm
                + (self._query_norm[part] + self._query_error[part]) * error
            )
            slack = slack + self._query_norm[part] * norm * self._rounding(block.shape[1])
            scores = self._proposing[part] @ proposing.T
            floor = self._floor(scores, part, slack)
            query, row = _at_least(scores, floor - self._spread(floor, slack))
            if len(query):
                self._propose(block, keys, query + first, row)
        if self._num_waiting >= self._scores.numel():
            self._merge()

    def _floor(self, scores: Tensor, part: slice, slack: Tensor) -> Tensor:
        """A value `[q]` that the k-th best exact score is known to reach."""
        floor = self._scores[part, -1]
        if scores.shape[1] >= self.k and bool((floor == -torch.inf).any()):
            # The list is not full yet: the k-th best of this block alone is a bound already.
            kth = scores.topk(self.k, dim=1).values[:, -1].to(torch.float32)
            floor = torch.maximum(floor, kth - self._spread(kth, slack))
        return floor

    def _spread(self, score: Tensor, slack: Tensor) -> Tensor:
        """How far an approximate score may lie from an exact one of this size: the inputs' rounding
        and the result's."""
        result_rounding = 2.0**-8 if self.dtype == torch.bfloat16 else 2.0**-22
        spread = slack + score.abs() * (result_rounding * 1.01)
        return torch.where(score.isinf(), torch.zeros_like(score), spread)

    def _rounding(self, width: int) -> float:
        # On CUDA a float32 product may run in TF32, whose inputs carry 11 bits.
        return (width + 2) * 2.0**-24 + (2.0**-10 if self.queries.is_cuda else 0.0)

    def _propose(self, block: Tensor, keys: Tensor, query: Tensor, row: Tensor) -> None:
        pieces = zip(query.split(_PAIRS_AT_ONCE), row.split(_PAIRS_AT_ONCE), strict=True)
        exact = torch.cat(
            [
                (self.queries[q].double() * block[r].double()).sum(dim=1).to(torch.float32)
                for q, r in pieces
            ]
        )
        self._waiting.append((query, exact, keys[row]))
        self._num_waiting += len(query)
        if (
            bool((self._scores[:, -1] == -torch.inf).any())
            or self._num_waiting > 4 * self._scores.numel()
        ):
            self._merge()

    def _merge(self) -> None:
        """Sort what waits into the lists."""
        if not self._waiting:
            return
        num_queries, k = self._scores.shape
        device = self._scores.device
        held = torch.arange(num_queries, device=device).repeat_interleave(k)
        query = torch.cat([held, *(piece[0] for piece in self._waiting)])
        score = torch.cat([self._scores.flatten(), *(piece[1] for piece in self._waiting)])
        key = torch.cat([self._keys.flatten(), *(piece[2] for piece in self._waiting)])
        self._waiting, self._num_waiting = [], 0
        order = key.argsort(descending=True)
        order = order[score[order].argsort(descending=True, stable=True)]
        order = order[query[order].argsort(stable=True)]
        query, score, key = query[order], score[order], key[order]
        counts = torch.bincount(query, minlength=num_queries)
        place = torch.arange(len(query), device=device) - (counts.cumsum(0) - counts)[query]
        kept = place < k
        self._scores = score[kept].view(num_queries, k)
        self._keys = key[kept].view(num_queries, k)


def top_k(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    candidates: Candidates = "auto",
    keys: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores and keys `[Q, min(k, N)]` of the k largest dot products; see `TopK` for order and
    exactness."""
    best = TopK(queries, k, candidates=candidates)
    best.add(rows, keys)
    return best.result()


def _proposal_dtype(candidates: Candidates, device: torch.device) -> torch.dtype:
    if candidates == "auto":
        # Without tiles a bf16 product is slower than a float32 one; on CUDA its sums may be kept in
        # 16 bits, which no bound here covers.
        return torch.bfloat16 if device.type == "cpu" and _has_tiles() else torch.float32
    if candidates == "bf16" and device.type == "cuda":
        raise ValueError("bf16 candidates are for the CPU; leave 'candidates' at auto on a GPU")
    return torch.bfloat16 if candidates == "bf16" else torch.float32


def _has_tiles() -> bool:
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else False


def _at_least(scores: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Positions (query, row) of the scores that reach their query's floor.

    Maxima over groups of 64 neighbours are looked at first: nearly every group falls out there, at
    a fraction of the cost of comparing every score.
    """
    num_rows = scores.shape[1]
    whole = num_rows - num_rows % _GROUP
    grouped = scores[:, :whole].unflatten(1, (whole // _GROUP, _GROUP))
    query, group = (grouped.amax(dim=2).to(torch.float32) >= floor[:, None]).nonzero(as_tuple=True)
    candidate, column = (grouped[query, group].to(torch.float32) >= floor[query, None]).nonzero(
        as_tuple=True
    )
    found = [(query[candidate], group[candidate] * _GROUP + column)]
    if whole < num_rows:
        query, row = (scores[:, whole:].to(torch.float32) >= floor[:, None]).nonzero(as_tuple=True)
        found.append((query, row + whole))
    return torch.cat([q for q, _ in found]), torch.cat([r for _, r in found])
