"""Modules by any name."""

from __future__ import annotations

from torch import nn


class NamedModules(nn.ModuleDict):
    """A ModuleDict that also takes the names of its own methods, such as `keys` or `train`: names
    come from recipes. Reach its modules by `[]` and `named_modules`, not by `get_submodule`."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._modules[name] = module  # type: ignore[assignment]
