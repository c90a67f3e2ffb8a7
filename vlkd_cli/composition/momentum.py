"""A tower that follows another by exponential moving average (MoCo, BYOL and DINO teachers)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from vlkd_cli.recipe.types import Schedulable, value_at
from vlkd_cli.towers.tower import Tower


class MomentumTower(nn.Module):
    """A copy of a tower whose weights become `m * own + (1 - m) * followed` after each optimizer
    step.

    Its weights take no gradient but change, so unlike a frozen tower's they belong to the
    checkpoint. Batch-norm statistics are its own.

    Args:
        tower: the tower it starts as a copy of.
        follows: that tower's name in the recipe.
        momentum: m, 0 to 1, a number or a schedule such as `{cosine: [0.996, 1.0]}`.

    Source: He et al., Momentum Contrast, CVPR 2020, arXiv:1911.05722, equation 2.
    """

    def __init__(self, tower: Tower, *, follows: str, momentum: Schedulable = 0.999) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower)
        self.tower.requires_grad_(False)
        self.follows = follows
        self.momentum = momentum

    @property
    def width(self) -> int:
        return self.tower.width

    @property
    def feature_width(self) -> int:
        return self.tower.feature_width

    @torch.no_grad()
    def features(self, inputs: object) -> Tensor:
        return self.tower.features(inputs)

    @torch.no_grad()
    def project(self, features: Tensor) -> Tensor:
        return self.tower.project(features)

    @torch.no_grad()
    def follow(self, source: Tower, step: int, steps_per_epoch: int, total_steps: int) -> None:
        """Move towards the followed tower, once per optimizer step."""
        momentum = value_at(self.momentum, step, steps_per_epoch, total_steps)
        own: list[Tensor] = [
            parameter for parameter in self.tower.parameters() if parameter.is_floating_point()
        ]
        followed: list[Tensor] = [
            parameter for parameter in source.parameters() if parameter.is_floating_point()
        ]
        torch._foreach_lerp_(own, followed, 1 - momentum)
