"""The learnable factor on cosines that the contrastive objectives share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from vlkd_cli import console
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.recipe.types import Positive, Progress

FROM_TOWERS = "from towers"
CLIP_SCALE = 1 / 0.07
"""The factor that CLIP starts from."""


class ScaledDistiller(Distiller):
    """Base of the objectives with a learnable factor on cosines, stored as its logarithm.

    It is a parameter where it learns, else a buffer, so that checkpoints look the same.

    Args:
        logit_scale: initial factor on the cosines (not its logarithm); `from towers`: the one that
            the dual encoder was trained to whose halves are compared.
        learnable: whether the factor is trained; it then stays within [1, max_logit_scale] after
            each step.
        max_logit_scale: highest factor; null leaves it unbounded.
    """

    log_scale: Tensor

    def __init__(
        self,
        *,
        logit_scale: Positive | Literal["from towers"] = CLIP_SCALE,
        learnable: bool = True,
        max_logit_scale: Positive | None = 100.0,
    ) -> None:
        super().__init__()
        self.learnable, self.max_logit_scale = learnable, max_logit_scale
        self.starts_from_towers = logit_scale == FROM_TOWERS
        value = CLIP_SCALE if isinstance(logit_scale, str) else logit_scale
        self.add_scalar("log_scale", math.log(value))

    def add_scalar(self, name: str, value: float) -> None:
        """A number that is trained where the factor is."""
        if self.learnable:
            self.register_parameter(name, nn.Parameter(torch.tensor(float(value))))
        else:
            self.register_buffer(name, torch.tensor(float(value)))

    @torch.no_grad()
    def start_from(self, scale: float, bias: float | None) -> None:
        """Start where the towers' own dual encoder ended. A factor above the bound removes it.

        Args:
            bias: of the logits; None where that encoder has none.
        """
        if self.max_logit_scale is not None and scale > self.max_logit_scale:
            console.warn(
                f"the towers' own factor on cosines, {scale:.4g}, is above max_logit_scale"
                f" {self.max_logit_scale:g}, which is left out."
            )
            self.max_logit_scale = None
        self.log_scale.fill_(math.log(scale))

    @property
    def scale(self) -> Tensor:
        """The factor, with its gradient."""
        return self.log_scale.exp()

    def commit(self, progress: Progress) -> None:
        self.clamp(self.log_scale)

    @torch.no_grad()
    def clamp(self, log_scale: Tensor) -> None:
        """Clamp the logarithm of a learned factor to the bounds."""
        if self.learnable and self.max_logit_scale is not None:
            log_scale.clamp_(0.0, math.log(self.max_logit_scale))
