"""Differentiable exchange between ranks; the only module of vlkd that moves tensors between them.

The convention that every distiller builds on: a rank returns the mean loss over its own rows, and
DDP averages gradients over the W ranks. The single-process loss is then the mean of the rank
losses, and a tensor's gradient on its rank must be W times the single-process gradient. `gather`
and `all_reduce_sum` have backward passes that deliver exactly that: each sums the cotangents of all
ranks. A gather with the same value that drops other ranks' cotangents gives towers 1/W of their
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlkd_cli.distributed.runtime import is_distributed, rank, world_size

Value = TypeVar("Value")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, local: Tensor) -> Tensor:
        return _gathered(local)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        (grad,) = grads
        # gloo has no reduce-scatter for every type, so sum everything and slice this rank's rows;
        # nccl gets the cheaper collective.
        if grad.is_cuda:
            own = torch.empty(
                grad.shape[0] // world_size(), *grad.shape[1:], dtype=grad.dtype, device=grad.device
            )
            dist.reduce_scatter_tensor(own, grad.contiguous())
            return own
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, local: Tensor) -> Tensor:
        total = local.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        (grad,) = grads
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class _Prefixes:
    """Prefixes of tensors that are gathered whole, once, while they are in use."""

    def __init__(self) -> None:
        self._prefixes: dict[int, tuple[Tensor, Tensor]] = {}
        self._gathered: dict[tuple[int, bool], Tensor] = {}

    def __call__(self, whole: Tensor, width: int) -> Tensor:
        """The first values of each row, `[..., width]`."""
        prefix = whole[..., :width]
        self._prefixes[id(prefix)] = prefix, whole
        return prefix

    def gathered(self, local: Tensor, *, with_gradient: bool) -> Tensor | None:
        """The rows of all ranks, where this is a prefix."""
        if id(local) not in self._prefixes:
            return None
        whole = self._prefixes[id(local)][1]
        key = id(whole), with_gradient
        if key not in self._gathered:
            self._gathered[key] = (
                _Gather.apply(whole) if with_gradient else _gathered(whole.detach())
            )
        return self._gathered[key][..., : local.shape[-1]]


_prefixes: ContextVar[_Prefixes | None] = ContextVar("prefixes", default=None)


@contextmanager
def gathering_once() -> Iterator[_Prefixes]:
    """Gather a tensor once, however many of its prefixes are gathered inside; call what this gives
    to take a prefix."""
    inside = _Prefixes()
    token = _prefixes.set(inside)
    try:
        yield inside
    finally:
        _prefixes.reset(token)


def gather(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order, `[W * B, ...]`, with the exact gradient. Every rank must
    hold the same number of rows."""
    if not is_distributed() or world_size() == 1:
        return local
    shared = _prefixes.get()
    found = None if shared is None else shared.gathered(local, with_gradient=True)
    return _Gather.apply(local) if found is None else found


def gather_without_grad(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order, `[W * B, ...]`, cut off from the graph. Every rank must hold
    the same number of rows."""
    if not is_distributed() or world_size() == 1:
        return local.detach()
    shared = _prefixes.get()
    found = None if shared is None else shared.gathered(local, with_gradient=False)
    return _gathered(local.detach()) if found is None else found


def _gathered(local: Tensor) -> Tensor:
    everywhere = torch.empty(
        world_size() * local.shape[0], *local.shape[1:], dtype=local.dtype, device=local.device
    )
    dist.all_gather_into_tensor(everywhere, local.contiguous())
    return everywhere


def gather_ragged(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order where ranks may hold different numbers of rows; cut off from
    the graph."""
    if not is_distributed() or world_size() == 1:
        return local.detach()
    counts = gather_without_grad(torch.tensor([local.shape[0]], device=local.device)).tolist()
    padded = torch.zeros(max(counts), *local.shape[1:], dtype=local.dtype, device=local.device)
    padded[: local.shape[0]] = local.detach()
    blocks = (
        gather_without_grad(padded).split(max(counts)) if max(counts) else [padded] * len(counts)
    )
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


def all_reduce_sum(local: Tensor) -> Tensor:
    """Sum over ranks, with the exact gradient."""
    return _AllReduceSum.apply(local) if is_distributed() and world_size() > 1 else local


def sum_without_grad(local: Tensor) -> Tensor:
    """Sum over ranks, cut off from the graph; the argument is left as it was."""
    total = local.detach().clone()
    if is_distributed() and world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_without_grad(local: Tensor) -> Tensor:
    """Mean over ranks of equal weight, cut off from the graph."""
    return sum_without_grad(local) / world_size()


def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Overwrite the tensor on every rank with the one of `source`; returns it."""
    if is_distributed() and world_size() > 1:
        dist.broadcast(tensor, src=source)
    return tensor


def broadcast_object(value: Value, source: int = 0) -> Value:
    """A picklable value of `source`, on every rank."""
    if not is_distributed() or world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source)
    return box[0]


def gather_objects(value: Value) -> list[Value]:
    """The picklable values of all ranks in rank order, on every rank."""
    if not is_distributed() or world_size() == 1:
        return [value]
    box = [value] * world_size()
    dist.all_gather_object(box, value)
    return box
