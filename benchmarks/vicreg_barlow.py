"""VICReg and Barlow Twins through the batch's Gram matrix against the D x D matrices: value and
gradient, float32, one thread.

    python benchmarks/vicreg_barlow.py [--rows 256] [--width 4096] [--rounds 1]

The peer builds the covariances and correlations, as the authors' code does. Exits with 1 where vlkd
is not smaller and faster.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from forked import compare, report
from torch import Tensor

from vlkd_cli.distillers.barlow_twins import BarlowTwins
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.vicreg import VICReg


def features(rows: int, width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    first = torch.randn(rows, width)
    return first.requires_grad_(), (first.detach() + torch.randn(rows, width)).requires_grad_()


def off_diagonal_squares(matrix: Tensor) -> Tensor:
    return matrix.square().sum() - matrix.diagonal().square().sum()


def vicreg(x: Tensor, y: Tensor) -> Tensor:
    loss = 25 * F.mse_loss(x, y)
    for side in (x, y):
        rows = side - side.mean(dim=0)
        covariance = rows.T @ rows / (len(rows) - 1)
        loss = (
            loss
            + 12.5 * F.relu(1 - torch.sqrt(rows.var(dim=0) + 1e-4)).mean()
            + off_diagonal_squares(covariance) / side.shape[1]
        )
    return loss


def barlow_twins(x: Tensor, y: Tensor) -> Tensor:
    first, second = (
        (side - side.mean(dim=0)) / torch.sqrt(side.var(dim=0, unbiased=False) + 1e-5)
        for side in (x, y)
    )
    correlation = first.T @ second / len(x)
    return (correlation.diagonal() - 1).square().sum() + 0.0051 * off_diagonal_squares(correlation)


def ours(
    kind: Callable[[], Distiller], rows: int, width: int
) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        x, y = features(rows, width)
        loss = kind()
        return lambda: loss(x, y).backward()

    return prepare


def peer(
    loss: Callable[[Tensor, Tensor], Tensor], rows: int, width: int
) -> Callable[[], Callable[[], object]]:
    def prepare() -> Callable[[], object]:
        x, y = features(rows, width)
        return lambda: loss(x, y).backward()

    return prepare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    fine = True
    for kind, naive in ((VICReg, vicreg), (BarlowTwins, barlow_twins)):
        sizes = options.rows, options.width
        costs = compare(ours(kind, *sizes), peer(naive, *sizes), options.rounds)
        fine &= report(
            f"{kind.__name__} N={sizes[0]}, D={sizes[1]}", *costs, faster=1.0, smaller=1.0
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
