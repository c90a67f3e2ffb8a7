"""The learning rate as a pure function of the optimizer step, so that nothing about it needs
saving."""

from __future__ import annotations

import math

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.messages import written
from vlkd_cli.recipe.schedules import schedules_of
from vlkd_cli.recipe.schema import Recipe, ScheduleSpec
from vlkd_cli.recipe.types import Progress


def learning_rate_factor(spec: ScheduleSpec, progress: Progress) -> float:
    """Fraction of the peak learning rate at an optimizer step.

    Warm-up rises linearly and reaches 1 at its last step. Then:

    - `cosine`, `linear`: decay towards `end_factor`, which the step after the last would have.
    - `constant`, `wsd`: 1 (Hu et al., MiniCPM, arXiv:2404.06395, section 4.2).
    - `rsqrt`: sqrt(t / (t + s - W)) at step s after W warm-up steps, t being `timescale` (Zhai et
      al., Scaling Vision Transformers, arXiv:2106.04560, section 3.5).
    - `steps`: `factor` to the power of the milestones passed, which are epochs.

    A cooldown takes the last steps of `constant`, `wsd` and `rsqrt` from the level before it to
    `end_factor`, which the last step has: linearly, by 1 - sqrt (the default of `wsd`; Hägele et
    al., arXiv:2405.18392, section 4.1) or by a cosine.
    """
    step, steps_per_epoch, total_steps = progress
    warmup = _warmup(spec, steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if spec.name == "steps":
        passed = sum(step >= milestone * steps_per_epoch for milestone in spec.milestones)
        return spec.factor**passed
    if spec.name in ("cosine", "linear"):
        done = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        share = (1 + math.cos(math.pi * done)) / 2 if spec.name == "cosine" else 1 - done
        return spec.end_factor + (1 - spec.end_factor) * share
    cooldown = _cooldown(spec, steps_per_epoch)
    begin = total_steps - cooldown
    if not cooldown or step < begin:
        return _level(spec, step, warmup)
    done = min((step - begin + 1) / cooldown, 1.0)
    down = spec.end_factor + (1 - spec.end_factor) * _remaining(spec, done)
    return _level(spec, max(begin - 1, warmup), warmup) * down


def cooldown_start(recipe: Recipe, run: Progress) -> int | None:
    """The step at which the first cooldown starts, those of `optimizer.groups` included: from there
    on the rates depend on the length of the run. None without a cooldown.

    Raises:
        RecipeError: warm-up and cooldown of a schedule are longer than the run.
    """
    starts = []
    for path, spec in schedules_of(recipe):
        warmup = _warmup(spec, run.steps_per_epoch)
        cooldown = _cooldown(spec, run.steps_per_epoch)
        if not cooldown:
            continue
        if warmup + cooldown > run.total_steps:
            raise RecipeError(
                f"{written(path)}: warm-up ({warmup} steps) and cooldown ({cooldown}) are longer"
                f" than the run of {run.total_steps} steps. Shorten one of them, or train longer."
            )
        starts.append(run.total_steps - cooldown)
    return min(starts, default=None)


def _warmup(spec: ScheduleSpec, steps_per_epoch: int) -> int:
    return spec.warmup_steps or round(spec.warmup_epochs * steps_per_epoch)


def _cooldown(spec: ScheduleSpec, steps_per_epoch: int) -> int:
    return spec.cooldown_steps or round(spec.cooldown_epochs * steps_per_epoch)


def _level(spec: ScheduleSpec, step: int, warmup: int) -> float:
    """The factor between warm-up and cooldown."""
    if spec.name != "rsqrt":
        return 1.0
    timescale = spec.timescale or max(warmup, 1)
    return math.sqrt(timescale / (timescale + step - warmup))


def _remaining(spec: ScheduleSpec, done: float) -> float:
    """What a cooldown leaves of the level when `done` of it, 0 to 1, is over."""
    shape = spec.cooldown_shape or ("sqrt" if spec.name == "wsd" else "linear")
    if shape == "sqrt":
        return 1 - math.sqrt(done)
    return 1 - done if shape == "linear" else (1 + math.cos(math.pi * done)) / 2
