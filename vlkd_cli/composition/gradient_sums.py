"""Gradients of weights that several pieces of a step read, added up as soon as each is known.

A piece that runs in a backward pass of its own would otherwise return a whole set of gradients,
next to the sum of those before it: 8 bytes for each weight instead of 4. Here the node of a piece's
graph that computes a weight's gradient adds it to the sum and passes nothing on. Once all pieces
are done, autograd reaches the node that returns the sums, an input of every piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from vlkd_cli.numerics.autograd import Context

Grads = tuple[Tensor | None, ...]


class GradientSums:
    """The sums of one step.

    Args:
        weights: whose gradients are added up, each of them once; at least one.

    `token` is to be an input of every node whose backward pass adds to the sums: autograd returns
    them to the weights after the last of these nodes.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = {id(weight): weight for weight in weights}
        self._sums: dict[int, Tensor] = {}
        self._times_returned = 0
        self.token: Tensor = _Return.apply(self, *self._weights.values())

    def take_from(self, outputs: Iterable[Tensor]) -> None:
        """Add what the graph of these outputs computes for the weights; call it before its
        backward pass. A pass that comes after the sums were returned gives to the weights itself.
        """
        for node, leaves in nodes_before_leaves(outputs):
            places = [(place, id(leaf)) for place, leaf in leaves if id(leaf) in self._weights]
            if places:
                node.register_hook(self._adds(places))

    def returned(self) -> Grads:
        """The sums in the order of the weights; None where there was no gradient."""
        self._times_returned += 1
        return tuple(self._sums.pop(weight, None) for weight in self._weights)

    def _adds(self, places: list[tuple[int, int]]) -> Callable[[Grads, Grads], Grads | None]:
        expected = self._times_returned

        def hook(found: Grads, given: Grads) -> Grads | None:
            if self._times_returned != expected:
                return None
            rest = list(found)
            for place, weight in places:
                gradient, rest[place] = found[place], None
                if gradient is None:
                    continue
                if weight in self._sums:
                    self._sums[weight].add_(gradient)
                else:
                    self._sums[weight] = _owned(gradient, (*found, *given))
            return tuple(rest)

        return hook


def _owned(gradient: Tensor, others: Grads) -> Tensor:
    """What may be added to: the gradient, or a copy where it shares memory with others that a node
    took and gave, which further nodes may read."""
    if gradient.is_sparse:
        return gradient.to_dense()
    shared = [_memory(each) for each in others if each is not None]
    return gradient if shared.count(_memory(gradient)) == 1 else gradient.clone()


def _memory(tensor: Tensor) -> int:
    return 0 if tensor.is_sparse else tensor.untyped_storage().data_ptr()


class _Return(torch.autograd.Function):
    """Returns the sums to the weights."""

    @staticmethod
    def forward(ctx: Context, sums: GradientSums, *weights: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sums = sums
        return weights[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, _: Tensor | None) -> Grads:
        return None, *ctx.sums.returned()


@contextmanager
def without_hooks(weights: Iterable[Tensor]) -> Iterator[None]:
    """Within it, the weights' own hooks do not run: they are for the sums."""
    found = [(weight, weight._backward_hooks) for weight in weights if weight._backward_hooks]
    for weight, _ in found:
        weight._backward_hooks = None
    try:
        yield
    finally:
        for weight, hooks in found:
            weight._backward_hooks = hooks


def nodes_before_leaves(
    outputs: Iterable[Tensor],
) -> Iterator[tuple[Node, list[tuple[int, Tensor]]]]:
    """The nodes of a graph that pass a gradient to a leaf: each with the places of its gradients
    and the leaves that these are for."""
    waiting = [output.grad_fn for output in outputs]
    seen = set[Node]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        following = [one for one, _ in node.next_functions]
        leaves = [
            (place, one.variable)
            for place, one in enumerate(following)
            if one is not None and hasattr(one, "variable")
        ]
        if leaves:
            yield node, leaves
        waiting += following
