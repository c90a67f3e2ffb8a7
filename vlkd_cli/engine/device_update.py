"""The update of a step on a GPU, which the host never waits for.

Reading the gradient's norm would make the device run dry at every step. So whether a step is
skipped is decided where the gradient is: fused optimizers leave everything as it was where
`found_inf` is 1 (as torch.amp.GradScaler uses it), what the distillers and followers changed is
written back, and the steps are counted in a tensor, which is read when something is logged or
saved. Once too many steps in a row were skipped, all further ones are, until the host has noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkd_cli.composition.composition import Composition
from vlkd_cli.distillers.distiller import counts_rows
from vlkd_cli.distributed.sharding import own_slice
from vlkd_cli.engine.ema import EMA
from vlkd_cli.recipe.schema import TrainSpec


class Skipped(NamedTuple):
    """Steps without an update: all of them, the last ones in a row, and those for which the scale
    of fp16 was not the reason."""

    steps: int
    in_a_row: int
    diverged: int


class DeviceUpdate:
    """Takes a step with the optimizer, the distillers, the followers and the average, or with none
    of them.

    Args:
        optimizer: a fused one.
        ema: the average of the weights, if there is one.
    """

    def __init__(
        self,
        composition: Composition,
        optimizer: torch.optim.Optimizer,
        ema: EMA | None,
        settings: TrainSpec,
        device: torch.device,
    ) -> None:
        self.optimizer, self.settings = optimizer, settings
        self._committed = [*_state(composition.distillers), *_state(composition.followers)]
        if ema is not None:
            self._committed += ema.averages
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def __call__(self, norm: Tensor, loss: Tensor, commit: Callable[[], None]) -> None:
        """Update if the gradient's norm is finite.

        Args:
            loss: decides whether only the scale of fp16 was too large.
            commit: what follows the optimizer's step.
        """
        too_many = self._counts[1] >= self.settings.max_nonfinite_steps
        skip = norm.isfinite().logical_not() | too_many
        self._count(skip, loss)
        self._step(norm, skip)
        with unchanged_where(skip, self._committed):
            commit()

    def read(self) -> Skipped:
        """The counts since the start of this process; waits for the device."""
        return Skipped(*self._counts.tolist())

    def _count(self, skip: Tensor, loss: Tensor) -> None:
        # A scale that is too large for fp16 is halved until the gradient is finite again.
        diverged = skip & ~loss.isfinite() if self.settings.precision == "fp16" else skip
        steps, in_a_row, before = self._counts.unbind()
        self._counts = torch.stack([steps + skip, (in_a_row + 1) * skip, before + diverged])

    def _step(self, norm: Tensor, skip: Tensor) -> None:
        optimizer: Any = self.optimizer
        _start_momentum(optimizer)
        limit = self.settings.clip_grad_norm
        optimizer.found_inf = skip.float()
        # The kernel divides by it, which spares a pass over the gradients for clipping.
        optimizer.grad_scale = None if limit is None else ((norm + 1e-6) / limit).clamp(min=1)
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf, optimizer.grad_scale


def suits(composition: Composition, optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether a `DeviceUpdate` is possible and pays.

    On the CPU reading a number costs nothing. Only fused optimizers can skip a step on the device.
    Banks with a row for each sample of the data set would have to be copied at every step.
    """
    return (
        device.type == "cuda"
        and getattr(optimizer, "_step_supports_amp_scaling", False)
        and not any(group.get("dampening") for group in optimizer.param_groups)
        and not any(
            counts_rows(each)  # type: ignore[arg-type]
            for each in composition.distillers.values()
        )
    )


@contextmanager
def unchanged_where(skip: Tensor, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Context in which tensors are changed in place; on exit they are restored where `skip`, a
    boolean on the device, is true."""
    before = [tensor.clone() for tensor in tensors]
    yield
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skip, old, tensor))


def _state(modules: torch.nn.Module) -> Iterator[Tensor]:
    yield from map(own_slice, modules.parameters())
    yield from modules.buffers()


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zeros where SGD would take the first gradient as momentum: the same without dampening, and
    defined where the first step is skipped."""
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            if parameter.grad is not None and parameter not in optimizer.state:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
