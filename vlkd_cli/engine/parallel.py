"""How a composition is called on one process or several; the trainer knows no more of it than
`Wrapped`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from torch import nn

from vlkd_cli.composition.composition import Composition, StepOutput
from vlkd_cli.data.batch import Batch
from vlkd_cli.distributed import runtime
from vlkd_cli.distributed.sharding import (
    divided_modules,
    is_divided,
    own_slice,
    slice_parameter,
)
from vlkd_cli.engine.gradients import average_gradients
from vlkd_cli.recipe.types import Progress


class Wrapped(NamedTuple):
    """A composition as the trainer calls it.

    Args:
        call: the forward pass; the backward pass of its loss averages gradients over the ranks.
        local: a context in which gradients stay on their rank, for all but the last batch of a
            step.
        finish: called after the last backward pass of a step, before gradients are read.
    """

    call: Callable[[Batch, Progress], StepOutput]
    local: Callable[[], AbstractContextManager[None]] = nullcontext
    finish: Callable[[], None] = lambda: None


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
        # A step need not use every parameter. It also prevents DDP from laying out its buckets
        # again after the first step of a process: the order of summation over three ranks or more
        # depends on the layout, and a resumed run has to add up as the uninterrupted one does.
        find_unused_parameters=True,
        # Gradients lie in the buckets that are sent: without a second set of them, and a copy less.
        gradient_as_bucket_view=True,
    )
    return Wrapped(module, module.no_sync)


def sharded(composition: Composition) -> Wrapped:
    """Towers whose weights are divided among the ranks (`distributed.sharding`); everything else is
    the same on every rank, its gradients averaged after the backward pass."""
    trained = [one for one in composition.parameters() if one.requires_grad]
    divided = [(one, slice_parameter(one)) for one in trained if is_divided(one)]
    whole = [one for one in trained if not is_divided(one)]
    modules = divided_modules(composition)

    @contextmanager
    def local() -> Iterator[None]:
        for module in modules:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in modules:
                module.set_requires_gradient_sync(True, recurse=False)

    def finish() -> None:
        for parameter, own in divided:
            own.grad = None if parameter.grad is None else own_slice(parameter.grad)
            parameter.grad = None
        average_gradients(whole)

    return Wrapped(composition, local, finish)


def compiled(wrap: Wrap) -> Wrap:
    """The same with the towers compiled first. Distillers are not: theirs are few large operations,
    and some of them decide by numbers."""

    def wrap_compiled(composition: Composition) -> Wrapped:
        for tower in composition.all_towers.values():
            tower.compile()
        return wrap(composition)

    return wrap_compiled


def wrap_for_this_group(*, compile: bool = False, shard: bool = False) -> Wrap:
    """DDP or sharding where a group of several processes is up, else the composition as it is."""
    wrap = plain if runtime.world_size() == 1 else sharded if shard else ddp
    return compiled(wrap) if compile else wrap
