"""Exact top-k of inner products over any number of rows, in bounded memory and with one rule for
ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vlkd_cli.numerics.precision import matrix_precision
from vlkd_cli.numerics.products import (
    Rounded,
    fast_dtype,
    product_error,
    result_rounding,
    rounded,
)

_GROUP = 64
_QUERIES_AT_ONCE = {"cpu": 256, "cuda": 4096}
_BLOCK_BYTES = {"cpu": 24 << 20, "cuda": 1 << 30}
"""Scores that are looked at together; on a CPU they stay near the cache."""
_PAIRS_AT_ONCE = {"cpu": 1024, "cuda": 1 << 15}
"""Candidates that are scored again together."""

Candidates = Literal["auto", "fp32", "bf16"]


class TopK:
    """The k best rows for every query, fed block by block: `add(rows)` as often as needed, then
    `result()`.

    A fast matrix product only proposes candidates: a row is dropped when its approximate score lies
    below the k-th best by more than the product can be wrong. What is left is scored again in
    float64 and rounded to float32, so the outcome depends neither on the precision of the
    proposals, nor on how rows are cut into blocks or spread over ranks, and equal rows tie exactly.
    Order: score descending, then key descending. Memory: the queries, one block of scores, k
    entries a query.

    Args:
        queries: `[Q, D]` float.
        k: how many rows to find for each query.
        candidates: precision of the proposing product; "auto" takes the one that this processor
            multiplies fastest (`products.fast_dtype`), and TF32 on a GPU, as does fp32.
        block_rows: rows that are scored at once; by default as many as stay near the cache.
        cosine: scores are cosines instead of inner products; rows of the same direction then tie,
            whatever their lengths, which rows normalized beforehand may not. A row of zeros has
            cosine 0.
    """

    def __init__(
        self,
        queries: Tensor,
        k: int,
        *,
        candidates: Candidates = "auto",
        block_rows: int | None = None,
        cosine: bool = False,
    ) -> None:
        if k < 1 or queries.ndim != 2:
            raise ValueError(
                f"top-k needs k >= 1 and queries [Q, D]; got k={k} and shape {tuple(queries.shape)}"
            )
        queries = queries.detach().to(torch.float32).contiguous()
        self.k, self.device, self.num_rows, self.cosine = k, queries.device, 0, cosine
        self.dtype = _proposal_dtype(candidates, queries.device)
        kind = "cuda" if queries.is_cuda else "cpu"
        self.queries_at_once = min(_QUERIES_AT_ONCE[kind], max(len(queries), 1))
        self.block_rows = (
            block_rows or _BLOCK_BYTES[kind] // self.queries_at_once // self.dtype.itemsize
        )
        self._parts = [
            _Part(part, k, self.dtype, cosine) for part in queries.split(self.queries_at_once)
        ]

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
        if not len(rows):
            return
        rows, keys = rows.to(self.device, torch.float32), keys.to(self.device)
        approximate = _proposing(rows, self.dtype, self.cosine)
        height = -(-len(rows) // -(-len(rows) // self.block_rows))
        # Columns behind the last row never win.
        room = torch.full(
            (self.queries_at_once, -(-height // _GROUP) * _GROUP),
            -torch.inf,
            dtype=self.dtype,
            device=self.device,
        )
        for part in self._parts:
            part.add(rows, approximate, keys, room, height)

    def result(self) -> tuple[Tensor, Tensor]:
        """Scores and keys, each `[Q, min(k, rows offered)]`, best first."""
        width = min(self.k, self.num_rows)
        found = [part.result() for part in self._parts]
        if not found:
            empty = torch.zeros(0, width, device=self.device)
            return empty, empty.to(torch.int64)
        return (
            torch.cat([scores[:, :width] for scores, _ in found]),
            torch.cat([keys[:, :width] for _, keys in found]),
        )


class _Proposals(NamedTuple):
    """Pairs of a query and a row with the pair's score."""

    query: Tensor
    row: Tensor
    score: Tensor

    def ordered(self, num_queries: int) -> tuple[_Proposals, Tensor]:
        """Sorted by query, then score descending, then row descending; and each one's rank in its
        query's list, from 0."""
        order = self.row.argsort(descending=True)
        order = order[self.score[order].argsort(descending=True, stable=True)]
        order = order[self.query[order].argsort(stable=True)]
        ordered = _Proposals(*(column[order] for column in self))
        counts = torch.bincount(ordered.query, minlength=num_queries)
        first = (counts.cumsum(0) - counts)[ordered.query]
        return ordered, torch.arange(len(order), device=order.device) - first


def _joined(parts: Sequence[_Proposals]) -> _Proposals:
    return _Proposals(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _Part:
    """Some of the queries with their lists."""

    def __init__(self, queries: Tensor, k: int, dtype: torch.dtype, cosine: bool) -> None:
        self.k, self.dtype, self.num_queries, self.cosine = k, dtype, len(queries), cosine
        self.exact = queries.double()
        self.queries = _proposing(queries, dtype, cosine)
        self.scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
        self.keys = torch.full((len(queries), k), -1, dtype=torch.int64, device=queries.device)
        self.waiting: list[_Proposals] = []

    def add(
        self, rows: Tensor, approximate: Rounded, keys: Tensor, room: Tensor, height: int
    ) -> None:
        """Take in what rows offer.

        Args:
            approximate: the rows in the proposals' type.
            room: for the products with `height` rows at a time; minus infinity behind them.
        """
        error = product_error(self.queries, approximate)
        floor = self.scores[:, -1]
        found: list[_Proposals] = []
        for start in range(0, len(rows), height):
            block = approximate.rows[start : start + height]
            floor, offered = self._offers(block, floor, error, room)
            found.append(offered._replace(row=offered.row + start))
        offered = self._prune(_joined(found), error)
        if not len(offered.query):
            return
        at_once = _PAIRS_AT_ONCE["cuda" if rows.is_cuda else "cpu"]
        pieces = zip(offered.query.split(at_once), offered.row.split(at_once), strict=True)
        exact = [self._exact(self.exact[q], rows[r].double()).float() for q, r in pieces]
        self.waiting.append(_Proposals(offered.query, keys[offered.row], torch.cat(exact)))
        waiting = sum(len(proposals.query) for proposals in self.waiting)
        if waiting >= self.scores.numel() or bool(self.scores[:, -1].isinf().any()):
            self._merge()

    def _exact(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Scores of pairs, in float64."""
        products: Tensor = torch.linalg.vecdot(queries, rows)
        if not self.cosine:
            return products
        lengths: Tensor = queries.norm(dim=1) * rows.norm(dim=1)
        return products / lengths.clamp(min=torch.finfo(lengths.dtype).tiny)

    def result(self) -> tuple[Tensor, Tensor]:
        self._merge()
        return self.scores, self.keys

    def _offers(
        self, block: Tensor, floor: Tensor, error: Tensor, room: Tensor
    ) -> tuple[Tensor, _Proposals]:
        """What may be among the k best of a block, by approximate scores; and a value `[q]` that
        the k-th best exact score is known to reach, no lower than `floor`."""
        scores = room[: self.num_queries]
        if len(block) < room.shape[1]:
            scores[:, len(block) :] = -torch.inf
        with matrix_precision("high", block.device):
            torch.mm(self.queries.rows, block.T, out=scores[:, : len(block)])
        # Group g holds the rows g, g + groups, g + 2 groups, ...: maxima over groups run over
        # contiguous memory, and nearly every group falls out by its maximum.
        grouped = scores.unflatten(1, (_GROUP, -1))
        best = grouped.amax(dim=1)
        among = best if best.shape[1] >= self.k else scores
        if among.shape[1] >= self.k:
            kth = among.topk(self.k, dim=1, sorted=False).values.amin(dim=1).float()
            floor = torch.maximum(floor, kth - self._spread(kth, error))
        limit = floor - self._spread(floor, error)
        query, group = (best.float() >= limit[:, None]).nonzero(as_tuple=True)
        inside = grouped.transpose(1, 2)[query, group].float()
        hit, member = (inside >= limit[query, None]).nonzero(as_tuple=True)
        row = member * best.shape[1] + group[hit]
        known = row < len(block)  # without a limit, columns without a row reach it too
        return floor, _Proposals(query[hit][known], row[known], inside[hit, member][known])

    def _prune(self, offered: _Proposals, error: Tensor) -> _Proposals:
        """Without what cannot be among the k best once all blocks are seen."""
        ordered, rank = offered.ordered(self.num_queries)
        floor = self.scores[:, -1].clone()
        last = rank == self.k - 1
        kth = ordered.score[last]
        query = ordered.query[last]
        floor[query] = torch.maximum(floor[query], kth - self._spread(kth, error[query]))
        limit = floor - self._spread(floor, error)
        wins = ordered.score >= limit[ordered.query]
        return _Proposals(*(column[wins] for column in ordered))

    def _spread(self, score: Tensor, error: Tensor) -> Tensor:
        """How far an approximate score may lie from an exact one of this size: the inputs' rounding
        and the result's."""
        spread = error + score.abs() * result_rounding(self.dtype)
        return torch.where(score.isinf(), torch.zeros_like(score), spread)

    def _merge(self) -> None:
        """Sort what waits into the lists."""
        if not self.waiting:
            return
        number = torch.arange(self.num_queries, device=self.scores.device)
        held = _Proposals(
            number.repeat_interleave(self.k), self.keys.flatten(), self.scores.flatten()
        )
        ordered, rank = _joined([held, *self.waiting]).ordered(self.num_queries)
        self.waiting = []
        wins = rank < self.k
        self.scores = ordered.score[wins].view(-1, self.k)
        self.keys = ordered.row[wins].view(-1, self.k)


def top_k(
    queries: Tensor,
    rows: Tensor,
    k: int,
    *,
    candidates: Candidates = "auto",
    keys: Tensor | None = None,
    cosine: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scores and keys `[Q, min(k, N)]` of the k largest inner products, or cosines; see `TopK` for
    order and exactness."""
    best = TopK(queries, k, candidates=candidates, cosine=cosine)
    best.add(rows, keys)
    return best.result()


def _proposing(rows: Tensor, dtype: torch.dtype, cosine: bool) -> Rounded:
    """Rows as the proposing product takes them: of unit length for cosines."""
    if not cosine:
        return rounded(rows, dtype)
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    found = rounded(unit, dtype)
    # Bounds are computed in float32, which may round what was lost down.
    return Rounded(found.rows, found.lengths.float(), found.lost.float() * 1.001)


def _proposal_dtype(candidates: Candidates, device: torch.device) -> torch.dtype:
    if candidates == "auto":
        # On CUDA a bf16 product's sums may be held in 16 bits, which no bound here covers.
        return fast_dtype() if device.type == "cpu" else torch.float32
    if candidates == "bf16" and device.type == "cuda":
        raise ValueError("bf16 candidates are for the CPU; leave 'candidates' at auto on a GPU")
    return torch.bfloat16 if candidates == "bf16" else torch.float32
