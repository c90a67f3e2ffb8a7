"""A backbone that never learns, held so that nobody trains, saves or broadcasts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.builders.hiding import Masks


class Frozen:
    """Holder of a frozen backbone. It is no `nn.Module`: whatever walks modules (optimizers, state
    dicts, DDP, `train()`) passes it by.

    The backbone is always in eval mode and runs without gradient. Copies of a tower share it, as it
    never changes.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone.eval().requires_grad_(False)

    def __call__(
        self,
        inputs: Any,
        hidden: Tensor | None = None,
        masks: Masks = "none",
        *,
        tokens: bool = True,
    ) -> Encoded:
        with torch.no_grad():
            encoded: Encoded = self.backbone(inputs, hidden, masks, tokens=tokens)
            return encoded

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply what `nn.Module.to` applies to tensors; `Tower.to` calls it."""
        torch.nn.Module._apply(self.backbone, function)

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return self
