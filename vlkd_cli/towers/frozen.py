"""A backbone that is never trained, held so that nobody trains, saves or broadcasts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vlkd_cli.builders.backbone import Backbone, Encoded
from vlkd_cli.builders.hiding import Masks
from vlkd_cli.numerics.precision import DTYPES, autocast
from vlkd_cli.preprocessing import Inputs


class Frozen:
    """Holder of a frozen backbone. It is not an `nn.Module`: whatever walks modules (optimizers,
    state dicts, DDP, `train()`) passes it by.

    The backbone is always in eval mode and runs without gradient. Copies of a tower share it, as it
    never changes.

    Args:
        dtype: 16-bit type of its matrices, which halves their memory; vectors (biases, norms) and
            buffers stay in float32, and the network runs under autocast of that type, whatever the
            precision of training.
    """

    def __init__(self, backbone: Backbone, dtype: Literal["bf16", "fp16"] | None = None) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.dtype = dtype
        for parameter in backbone.parameters() if dtype is not None else ():
            if parameter.is_floating_point() and parameter.ndim > 1:
                parameter.data = parameter.data.to(DTYPES[dtype or "fp32"])

    def __call__(
        self,
        inputs: Inputs,
        hidden: Tensor | None = None,
        masks: Masks = "none",
        *,
        tokens: bool = True,
    ) -> Encoded:
        """See `Backbone.forward`. Outputs are in float32, or where training runs under autocast in
        the type that it gives."""
        device = next(self.backbone.parameters()).device
        with torch.no_grad(), autocast(self.dtype or "fp32", device):
            encoded: Encoded = self.backbone(inputs, hidden, masks, tokens=tokens)
        if self.dtype is None or torch.is_autocast_enabled(device.type):
            return encoded
        feature, found = encoded
        return Encoded(
            None if feature is None else feature.float(),
            None if found is None else found._replace(values=found.values.float()),
        )

    def move(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply what `nn.Module.to` applies to tensors; `Tower.to` calls it."""
        torch.nn.Module._apply(self.backbone, function)

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return self
