"""Means, variances and squared off-diagonal sums over the rows of all ranks, with the exact
gradient and the smaller Gram matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlkd_cli.distributed.collectives import all_reduce_sum, gather
from vlkd_cli.distributed.runtime import world_size


def centered(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """This rank's rows minus the mean over all ranks' rows."""
    return features - all_reduce_sum(features.sum(dim=0)) / (len(features) * world_size())


def cross_squares(
    left: Float[Tensor, "B D"], right: Float[Tensor, "B D"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "D"]]:
    """Sum of the squared off-diagonal entries of the D x D matrix `left^T right` over all ranks'
    rows, and its diagonal.

    With N rows in all and N < D, the N x N Gram matrices give the sum as well: ||L^T R||^2 = <L
    L^T, R R^T>. The diagonal's squares are subtracted in double precision; as a matrix of rank N <
    D cannot be near diagonal, little is lost by it. With N >= D the matrix itself is built and its
    diagonal left out. Each rank computes the Gram rows of its own samples only.
    """
    diagonal = all_reduce_sum((left * right).sum(dim=0))
    if len(left) * world_size() >= left.shape[1]:
        squares = all_reduce_sum(left.T @ right).square()
        squares.fill_diagonal_(0)
        return squares.sum(), diagonal
    gram = left @ gather(left).T
    products = gram.square() if left is right else gram * (right @ gather(right).T)
    total = all_reduce_sum(products.sum(dtype=torch.float64))
    return (total - diagonal.double().square().sum()).to(left.dtype), diagonal
