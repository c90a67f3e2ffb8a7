"""How a composition is called on one process or several; the trainer knows no more of it than
`Wrapped`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from torch import nn

from vlkd_cli.composition.composition import Composition, StepOutput
from vlkd_cli.data.batch import Batch
from vlkd_cli.distributed import runtime
from vlkd_cli.recipe.types import Progress


class Wrapped(NamedTuple):
    """A composition as the trainer calls it.

    Args:
        call: the forward pass; the backward pass of its loss averages gradients over the ranks.
        local: a context in which gradients stay on their rank, for all but the last batch of a
            step.
    """

    call: Callable[[Batch, Progress], StepOutput]
    local: Callable[[], AbstractContextManager[None]] = nullcontext


Wrap = Callable[[Composition], Wrapped]


def plain(composition: Composition) -> Wrapped:
    """One process."""
    return Wrapped(composition)


def ddp(composition: Composition) -> Wrapped:
    """The same weights on every rank; gradients are averaged while the backward pass runs."""
    if not any(parameter.requires_grad for parameter in composition.parameters()):
        return Wrapped(composition)
    device = next(composition.parameters()).device
    module = nn.parallel.DistributedDataParallel(
        composition,
        device_ids=[device] if device.type == "cuda" else None,
        # Queues and centers are equal on every rank by construction; sending them each step would
        # cost more than the gradients.
        broadcast_buffers=False,
        # A step need not use every parameter. It also keeps DDP from laying out its buckets again
        # after the first step of a process: the order of summation over three ranks or more depends
        # on the layout, and a resumed run has to add up as the uninterrupted one does.
        find_unused_parameters=True,
    )
    return Wrapped(module, module.no_sync)


def compiled(wrap: Wrap) -> Wrap:
    """The same with the towers compiled first. Distillers are not: theirs are few large operations,
    and some of them decide by numbers."""

    def wrap_compiled(composition: Composition) -> Wrapped:
        for tower in composition.all_towers.values():
            tower.compile()
        return wrap(composition)

    return wrap_compiled


def wrap_for_this_group(*, compile: bool = False) -> Wrap:
    """DDP where a group of several processes is up, else the composition as it is."""
    wrap = ddp if runtime.world_size() > 1 else plain
    return compiled(wrap) if compile else wrap
