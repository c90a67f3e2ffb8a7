"""The blocks of a backbone, and computing their activations again in the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vlkd_cli.builders.backbone import Backbone
from vlkd_cli.towers.freezing import HOLDER

_RECOMPUTES = ContextVar("recomputes", default=True)


def blocks_of(backbone: Backbone) -> list[nn.Module]:
    """The modules that `Backbone.layers` names, input side first; none of them inside another."""
    modules = {name.removeprefix(HOLDER): module for name, module in backbone.named_modules()}
    named = [name for layer in backbone.layers() for name in layer if name in modules]
    outermost = [name for name in named if not any(name.startswith(f"{other}.") for other in named)]
    # Lists are never called themselves.
    found = [modules[name] for name in outermost]
    return [block for block in found if not isinstance(block, nn.ModuleList | nn.ModuleDict)]


def repeated_blocks_of(backbone: Backbone) -> list[nn.Module]:
    """The blocks of which there are several of a kind: the body of a network, without the stem."""
    blocks = blocks_of(backbone)
    counts = Counter(type(block) for block in blocks)
    return [block for block in blocks if counts[type(block)] > 1]


def checkpoint_activations(backbone: Backbone) -> int:
    """Let every block store its inputs only and run again in the backward pass; how many there are.

    Gradients, random states and batch-norm statistics are those of a backbone that stores its
    activations. Names of modules and parameters stay.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    blocks = blocks_of(backbone)
    for block in blocks:
        block.forward = partial(_recomputed, block, block.forward)
    return len(blocks)


@contextmanager
def activations_stored() -> Iterator[None]:
    """Within it, blocks store their activations all the same."""
    token = _RECOMPUTES.set(False)
    try:
        yield
    finally:
        _RECOMPUTES.reset(token)


def _recomputed(block: nn.Module, run: Callable[..., Any], *inputs: Any, **keys: Any) -> Any:
    if not torch.is_grad_enabled() or not _RECOMPUTES.get():
        return run(*inputs, **keys)
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return checkpoint(run, *inputs, use_reentrant=False, **keys)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_unchanged(norms)

    return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, **keys)


@contextmanager
def _statistics_unchanged(norms: list[_BatchNorm]) -> Iterator[None]:
    """Within it, batch norms in training mode leave their running statistics alone, which the first
    run has updated."""
    moving = [(norm, norm.momentum) for norm in norms if norm.training]
    counts = [
        norm.num_batches_tracked for norm, _ in moving if norm.num_batches_tracked is not None
    ]
    before = [count.clone() for count in counts]
    for norm, _ in moving:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in moving:
            norm.momentum = momentum
        for count, value in zip(counts, before, strict=True):
            count.copy_(value)
