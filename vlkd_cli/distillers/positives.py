"""Which pairs of a batch match off the diagonal: rows of equal keys, with weights.

Keys are those of captions, labels or columns. W_ij = weight where the keys of i and j are equal,
W_ii = 1; with grades, W_ij = grade_j, and W_ii = grade_i, or 1 where that is 0. A pair of weight 0
is ignored: neither a positive nor a negative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_cli.distributed.collectives import gather_without_grad
from vlkd_cli.distributed.runtime import rank


class Positives(NamedTuple):
    """The weights of a matrix of own rows `[B]` and all columns `[N]`, a tile at a time.

    Of N x N pairs only the sums are held: a row's total needs the sum of grades of its key.

    Args:
        row_keys, column_keys: int64; negative ones equal nothing.
        row_grades, column_grades: of off-diagonal pairs, in 0..1.
        row_own, column_own: weights of the diagonal.
        row_totals, column_totals: sums of W over a row and over a column.
        is_flipped: whether rows are the second index of W, whose grades are those of its columns.
    """

    row_keys: Tensor
    column_keys: Tensor
    row_grades: Tensor
    column_grades: Tensor
    row_own: Tensor
    column_own: Tensor
    row_totals: Tensor
    column_totals: Tensor
    is_flipped: Tensor

    @classmethod
    def of(
        cls, keys: Tensor, weight: float, grades: Tensor | None, *, is_flipped: bool
    ) -> Positives:
        """Those of this rank's rows and the columns of all ranks.

        Args:
            keys: `[B]` int64.
            weight: of pairs with equal keys, where there are no grades.
            grades: `[B]` in 0..1.
            is_flipped: whether the rows are the teacher's.
        """
        of_row = torch.full(keys.shape, weight, dtype=torch.float64, device=keys.device)
        if grades is not None:
            of_row = grades.double()
        every, of_column = gather_without_grad(keys), gather_without_grad(of_row)
        own_of_column = torch.ones_like(of_column)
        if grades is not None:
            own_of_column = of_column.where(of_column > 0, own_of_column)
        has_key = every >= 0
        group = _groups(every)
        sums = torch.zeros_like(of_column).index_add_(0, group, of_column)
        counts = torch.zeros_like(of_column).index_add_(0, group, torch.ones_like(of_column))
        # Over j of W_ij, and over i of W_ij: a grade belongs to the second index.
        over_second = own_of_column + (sums[group] - of_column).where(has_key, 0.0 * of_column)
        others = (counts[group] - 1).where(has_key, 0.0 * of_column)
        over_first = own_of_column + others * of_column
        own = slice(rank() * len(keys), (rank() + 1) * len(keys))
        totals = (over_first, over_second) if is_flipped else (over_second, over_first)
        return cls(
            keys,
            every,
            of_row,
            of_column,
            own_of_column[own],
            own_of_column,
            totals[0][own],
            totals[1],
            torch.tensor(is_flipped),
        )

    def weights(self, rows: slice, columns: slice, diagonal: int) -> tuple[Tensor, Tensor]:
        """W of a tile `[r, c]`, and which of its pairs are ignored.

        Args:
            diagonal: the tile's column that matches its first row; may lie outside.
        """
        keys = self.row_keys[rows, None]
        same = (keys == self.column_keys[columns]) & (keys >= 0)
        grades = self.row_grades[rows, None] if self.is_flipped else self.column_grades[columns]
        weights = same * grades
        skipped, start = max(-diagonal, 0), max(diagonal, 0)
        matches = weights[skipped:, start:].diagonal()
        matches.copy_(self.row_own[rows][skipped : skipped + len(matches)])
        return weights, same & (weights == 0)


def _groups(keys: Tensor) -> Tensor:
    """A number in 0..N-1 for each key, the same for equal ones. Unlike `torch.unique` it does not
    wait for the device."""
    ordered, order = keys.sort()
    starts = torch.zeros_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, starts.cumsum(0))
