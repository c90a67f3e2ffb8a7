"""The learning rate as a pure function of the optimizer step, so that nothing about it needs
saving."""

from __future__ import annotations

import math

from vlkd_cli.recipe.schema import ScheduleSpec
from vlkd_cli.recipe.types import Progress


def learning_rate_factor(spec: ScheduleSpec, progress: Progress) -> float:
    """Fraction of the peak learning rate at an optimizer step.

    Warm-up rises linearly and reaches 1 at its last step; then cosine or linear decay to
    `end_factor` at the last step, constant, or `factor` to the power of the milestones passed,
    which are epochs.
    """
    step, steps_per_epoch, total_steps = progress
    warmup = spec.warmup_steps or round(spec.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if spec.name == "constant":
        return 1.0
    if spec.name == "steps":
        passed = sum(step >= milestone * steps_per_epoch for milestone in spec.milestones)
        return spec.factor**passed
    done = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    share = (1 + math.cos(math.pi * done)) / 2 if spec.name == "cosine" else 1 - done
    return spec.end_factor + (1 - spec.end_factor) * share
