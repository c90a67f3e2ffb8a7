"""An exponential moving average of everything that is trained, to evaluate and to save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlkd_cli.distributed.sharding import as_divided, own_slice, slice_of


class EMA:
    """Average of a module's trainable parameters; batch-norm statistics are the module's own.

    Args:
        module: the trained module.
        decay: fraction of the average that is retained at each step, 0 to 1.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._names = [
            name for name, parameter in module.named_parameters() if parameter.requires_grad
        ]
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        # Of weights that are divided among processes, this one's slices.
        self._live = [own_slice(parameter) for parameter in self._parameters]
        self.averages = [live.clone() for live in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        torch._foreach_lerp_(self.averages, self._live, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it, the module holds the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, average in zip(self._live, self.averages, strict=True):
            current = live.clone()
            live.copy_(average)
            average.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            name: as_divided(average, parameter)
            for name, average, parameter in zip(
                self._names, self.averages, self._parameters, strict=True
            )
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take in averages by the parameters' names.

        Raises:
            ValueError: one is missing or has another shape.
        """
        for name, average, parameter in zip(
            self._names, self.averages, self._parameters, strict=True
        ):
            if name not in state or state[name].shape != parameter.shape:
                raise ValueError(f"the average of '{name}' is missing or has another shape")
            average.copy_(slice_of(state[name], parameter))
