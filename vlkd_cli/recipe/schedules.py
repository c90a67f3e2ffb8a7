"""The learning-rate schedules of a recipe: which there are, impossible combinations of their keys,
and which of them fit a longer run."""

from __future__ import annotations

from collections.abc import Iterator

from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.schema import Recipe, ScheduleSpec, TrainSpec

WITH_COOLDOWN = ("constant", "wsd", "rsqrt")
OPEN_ENDED = (*WITH_COOLDOWN, "steps")
"""Before the cooldown these do not depend on the length of the run."""


def schedules_of(recipe: Recipe) -> Iterator[tuple[Path, ScheduleSpec]]:
    """Every schedule of a recipe with its path: its own, and those of `optimizer.groups`."""
    yield ("schedule",), recipe.schedule
    for number, group in enumerate(recipe.optimizer.groups):
        if (spec := group.own_schedule) is not None:
            yield ("optimizer", "groups", number, "schedule"), spec


def check_schedules(recipe: Recipe) -> Iterator[Problem]:
    """Keys of schedules without effect, and what does not fit into the run."""
    for path, spec in schedules_of(recipe):
        for key, text in [
            *_check_warmup(spec),
            *_check_decay(spec),
            *_check_cooldown(spec),
            *_check_length(spec, recipe.train),
        ]:
            yield Problem((*path, key), text)


def _check_warmup(spec: ScheduleSpec) -> Iterator[tuple[str, str]]:
    if spec.warmup_steps and spec.warmup_epochs:
        yield (
            "warmup_epochs",
            "warm-up lasts for warmup_steps or for warmup_epochs, not both. Remove one.",
        )


def _check_decay(spec: ScheduleSpec) -> Iterator[tuple[str, str]]:
    if spec.end_factor and spec.name == "steps":
        yield "end_factor", "has no effect with name: steps."
    elif spec.end_factor and spec.name in ("constant", "rsqrt") and not has_cooldown(spec):
        yield (
            "end_factor",
            f"has no effect with name: {spec.name} without a cooldown. Add cooldown_steps, or"
            " remove it.",
        )
    if spec.name == "steps" and not spec.milestones:
        yield (
            "name",
            "steps needs the epochs at which the learning rate falls: `milestones: [30, 60]`.",
        )
    for key, name in (("milestones", "steps"), ("factor", "steps"), ("timescale", "rsqrt")):
        if spec.name != name and getattr(spec, key) != getattr(ScheduleSpec(), key):
            yield key, f"has no effect without name: {name}."


def _check_cooldown(spec: ScheduleSpec) -> Iterator[tuple[str, str]]:
    if spec.cooldown_steps and spec.cooldown_epochs:
        yield (
            "cooldown_epochs",
            "the cooldown lasts for cooldown_steps or for cooldown_epochs, not both. Remove one.",
        )
    for key in ("cooldown_steps", "cooldown_epochs"):
        if getattr(spec, key) and spec.name not in WITH_COOLDOWN:
            yield (
                key,
                f"has no effect with name: {spec.name}. Schedules with a cooldown:"
                f" {', '.join(WITH_COOLDOWN)}.",
            )
    if spec.name == "wsd" and not has_cooldown(spec):
        yield (
            "name",
            "wsd needs the length of its decay: `cooldown_steps: 1000` or `cooldown_epochs: 2`.",
        )
    if spec.cooldown_shape is not None and not has_cooldown(spec):
        yield "cooldown_shape", "has no effect without cooldown_steps or cooldown_epochs."


def _check_length(spec: ScheduleSpec, train: TrainSpec) -> Iterator[tuple[str, str]]:
    """Whether warm-up, milestones and cooldown fit, as far as the recipe alone shows it."""
    beyond = [milestone for milestone in spec.milestones if milestone >= train.epochs]
    if spec.name == "steps" and beyond:
        yield (
            "milestones",
            f"{', '.join(f'{one:g}' for one in beyond)} {'are' if beyond[1:] else 'is'} never"
            f" reached: the run has {train.epochs} epoch{'s' * (train.epochs > 1)}, counted from 0."
            " Choose earlier ones, or train longer.",
        )
    for unit, length in (("steps", train.steps), ("epochs", train.epochs)):
        warmup = getattr(spec, f"warmup_{unit}")
        cooldown = getattr(spec, f"cooldown_{unit}")
        if length is not None and cooldown and warmup + cooldown > length:
            yield (
                f"cooldown_{unit}",
                f"warm-up ({warmup:g} {unit}) and cooldown ({cooldown:g}) are longer than the run"
                f" (train.{unit}: {length}). Shorten one of them, or train longer.",
            )


def has_cooldown(spec: ScheduleSpec) -> bool:
    """Whether the rate falls at the end of the run."""
    return bool(spec.cooldown_steps or spec.cooldown_epochs)
