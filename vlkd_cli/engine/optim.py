"""Optimizers: which parameters they move, with which settings, and what is stored of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from vlkd_cli.composition.composition import Composition
from vlkd_cli.distributed.sharding import as_divided, divided_of, slice_of, slice_parameter
from vlkd_cli.engine.schedules import learning_rate_factor
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.component import typed_keys
from vlkd_cli.recipe.optimizers import ELSEWHERE
from vlkd_cli.recipe.schema import GroupSpec, OptimizerSpec, Recipe, ScheduleSpec
from vlkd_cli.recipe.types import NonNegativeSchedulable, Progress
from vlkd_cli.towers.tower import Tower


def optimizer_class(name: str) -> type[Optimizer]:
    """The class of an optimizer by its name in `optimizer_names()`, in any case."""
    module, class_name = ELSEWHERE.get(name.lower(), ("torch.optim", name))
    classes = vars(importlib.import_module(module)).items()
    found: type[Optimizer] = next(
        value for key, value in classes if key.lower() == class_name.lower()
    )
    return found


class Trainable(NamedTuple):
    """One trainable parameter. Names are `TOWER.x` and `distillers.NAME.x`; `lr` is before the
    factor of its group."""

    name: str
    parameter: nn.Parameter
    lr: float


class Settings(NamedTuple):
    """What the parameters of one group of the optimizer share."""

    lr: float
    weight_decay: NonNegativeSchedulable
    group: int | None
    """Position in `optimizer.groups`."""


def build_optimizer(composition: Composition, recipe: Recipe, run: Progress) -> Optimizer:
    """The optimizer over everything that is trained, grouped by learning rate, weight decay and
    `optimizer.groups`, of which the first that matches decides.

    Each group carries what `set_rates` and `drop_waiting` read: `base_lr`, and, if the recipe sets
    them, `decay`, `schedule` and `start`. Biases, norms and scales (everything with fewer than two
    dimensions) are not decayed unless `decay_all` is set. With `layer_decay` d, a tower's layer
    that lies k below its head learns at d**k times the tower's rate (Bao et al., BEiT,
    arXiv:2106.08254).

    Args:
        run: its length.

    Raises:
        RecipeError: unknown optimizer, a key that it does not take, a group without effect, or
            nothing to train.
    """
    spec = recipe.optimizer
    trainable = list(_trainable(composition, recipe))
    if not trainable:
        raise RecipeError(
            "nothing to train: every tower is frozen and no distiller has parameters. Give a tower"
            " `train: head` or `all`."
        )
    _refuse_idle_groups(spec, trainable, run)
    gathered: dict[Settings, list[tuple[str, nn.Parameter]]] = {}
    for each in trainable:
        named = (each.name, slice_parameter(each.parameter))
        gathered.setdefault(_settings(spec, each), []).append(named)
    keys = typed_keys("optimizer", spec.name, spec.keys)
    kind: Callable[..., Optimizer] = optimizer_class(spec.name)
    if kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) and not {
        "foreach",
        "fused",
        "maximize",
    } & set(keys):
        keys["fused"] = True
    try:
        return kind(
            [
                {"params": named, **_group(spec, settings, run)}
                for settings, named in gathered.items()
            ],
            lr=spec.lr,
            **keys,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        # Values out of a method's range, which its signature does not show.
        reason = str(error).rstrip(".")
        raise RecipeError(f"optimizer '{spec.name}': {reason}. Correct its keys.") from error


def set_rates(optimizer: Optimizer, schedule: ScheduleSpec, progress: Progress) -> None:
    """Set the learning rate of every group to its base rate times the factor of its schedule (by
    default the given one), and the weight decay where that is scheduled."""
    for group in optimizer.param_groups:
        factor = learning_rate_factor(group.get("schedule") or schedule, progress)
        group["lr"] = group["base_lr"] * factor
        if "decay" in group:
            group["weight_decay"] = progress.value(group["decay"])


def drop_waiting(optimizer: Optimizer, step: int) -> None:
    """Drop the gradients of groups whose `from` has not come, so that neither the norm nor the
    optimizer sees them."""
    for group in optimizer.param_groups:
        if step < group.get("start", 0):
            for parameter in group["params"]:
                parameter.grad = None


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, object]]:
    """What the optimizer remembers of each parameter, by the parameter's name. Rates and the like
    are not in it: they follow from the recipe and the step."""
    names, parameters = _names(optimizer), _parameters(optimizer)
    state: dict[int, dict[str, object]] = optimizer.state_dict()["state"]
    return {
        names[position]: {
            name: as_divided(value, divided_of(parameters[position]))
            if isinstance(value, torch.Tensor) and value.ndim
            else value
            for name, value in values.items()
        }
        for position, values in state.items()
    }


def restore_optimizer(optimizer: Optimizer, saved: Mapping[str, Mapping[str, object]]) -> None:
    """Take in what `optimizer_state` gave; names may also be positions, as in format 1.

    Raises:
        ValueError: it is of other parameters.
    """
    names = _names(optimizer)
    own = optimizer.state_dict()
    position_of = {name: position for position, name in enumerate(names)}
    if saved and all(key.isdecimal() for key in saved):
        position_of = {str(position): position for position in range(len(names))}
    parameters = [divided_of(parameter) for parameter in _parameters(optimizer)]
    state = {}
    for key, values in saved.items():
        if key not in position_of:
            raise ValueError(f"the optimizer has no parameter '{key}'")
        position = position_of[key]
        for name, value in values.items():
            if not _fits(value, parameters[position]):
                raise ValueError(f"the optimizer's {name} of '{names[position]}' has another shape")
        # The file is mapped into memory: what the optimizer changes in place must be its own.
        state[position] = {
            name: _own(value, parameters[position]) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _own(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return (slice_of(value, parameter) if value.ndim else value).clone()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names(optimizer: Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def _fits(value: object, parameter: torch.Tensor) -> bool:
    # A count, or one number for each entry, or (Adafactor) for each row or column of a matrix.
    return (
        not isinstance(value, torch.Tensor)
        or value.ndim == 0
        or (
            value.ndim == parameter.ndim
            and all(a in (b, 1) for a, b in zip(value.shape, parameter.shape, strict=True))
        )
    )


def _trainable(composition: Composition, recipe: Recipe) -> Iterator[Trainable]:
    """Everything that is trained, each parameter once."""
    seen: set[nn.Parameter] = set()
    for tower_name, tower in composition.towers.items():
        assert isinstance(tower, Tower)
        section = recipe.towers[tower_name]
        for name, parameter in tower.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr = section.lr or recipe.optimizer.lr
            if section.layer_decay is not None:
                lr *= section.layer_decay ** (tower.num_layers - 1 - tower.layer_of(name))
            yield Trainable(f"{tower_name}.{name}", parameter, lr)
    for spec, objective in zip(recipe.distillers, composition.objectives, strict=True):
        own = [
            (f"distillers.{objective.name}.{name}", parameter)
            for name, parameter in objective.distiller.named_parameters()
            if parameter.requires_grad and parameter not in seen
        ]
        if spec.lr is not None and not own:
            raise RecipeError(
                f"distiller '{objective.name}' has no parameters, so its `lr` has no effect."
                " Remove it."
            )
        for name, parameter in own:
            seen.add(parameter)
            yield Trainable(name, parameter, spec.lr or recipe.optimizer.lr)


def _settings(spec: OptimizerSpec, each: Trainable) -> Settings:
    position = _group_of(spec, each.name)
    group = None if position is None else spec.groups[position]
    lr, decay = each.lr, spec.weight_decay
    if group is not None:
        lr = lr if group.lr_factor is None else lr * group.lr_factor
        decay = decay if group.weight_decay is None else group.weight_decay
    return Settings(lr, decay if _is_decayed(spec, each.parameter) else 0.0, position)


def _group(spec: OptimizerSpec, settings: Settings, run: Progress) -> dict[str, object]:
    """A group of the optimizer, without its parameters."""
    plain: dict[str, object] = {
        "lr": settings.lr,
        "base_lr": settings.lr,
        "weight_decay": run._replace(step=0).value(settings.weight_decay),
    }
    if not isinstance(settings.weight_decay, float | int):
        plain["decay"] = settings.weight_decay
    if settings.group is None:
        return plain
    group = spec.groups[settings.group]
    if group.schedule is not None:
        plain["schedule"] = group.own_schedule
    if group.from_ is not None:
        plain["start"] = _start(group, run)
    return {**plain, **typed_keys("optimizer", spec.name, group.keys)}


def _group_of(spec: OptimizerSpec, name: str) -> int | None:
    matching = (
        position
        for position, group in enumerate(spec.groups)
        if any(fnmatchcase(name, pattern) for pattern in group.match)
    )
    return next(matching, None)


def _start(group: GroupSpec, run: Progress) -> int:
    """Optimizer steps before the group is trained."""
    if group.from_ is None:
        return 0
    return group.from_.steps or (group.from_.epochs or 0) * run.steps_per_epoch


def _is_decayed(spec: OptimizerSpec, parameter: nn.Parameter) -> bool:
    # A column such as IA3's (64, 1) scales, however many dimensions it is written in.
    is_matrix = sum(size > 1 for size in parameter.shape) >= 2
    return spec.decay_all or is_matrix


def _refuse_idle_groups(spec: OptimizerSpec, trainable: list[Trainable], run: Progress) -> None:
    members: dict[int | None, list[Trainable]] = {}
    for each in trainable:
        members.setdefault(_group_of(spec, each.name), []).append(each)
    for number, group in enumerate(spec.groups):
        key = f"optimizer.groups[{number}]"
        for position, pattern in enumerate(group.match):
            if any(fnmatchcase(each.name, pattern) for each in members.get(number, [])):
                continue
            taken = any(fnmatchcase(each.name, pattern) for each in trainable)
            why = (
                "matches only parameters that an earlier group has matched. Put it before that one."
                if taken
                else f"matches no trainable parameter. They are named like {trainable[0].name}."
            )
            raise RecipeError(f"{key}.match[{position}]: '{pattern}' {why}")
        if group.weight_decay is not None and not any(
            _is_decayed(spec, each.parameter) for each in members[number]
        ):
            raise RecipeError(
                f"{key}.weight_decay: has no effect: only biases, norms and scales match, which"
                " are not decayed. Set optimizer.decay_all, or remove it."
            )
        if _start(group, run) >= run.total_steps:
            raise RecipeError(
                f"{key}.from: step {_start(group, run)} is beyond the run of {run.total_steps}"
                " steps. Start earlier, or freeze these parameters with `train:` of their tower."
            )
    if all(number is not None and _start(spec.groups[number], run) > 0 for number in members):
        raise RecipeError(
            "optimizer.groups: every parameter starts later by `from`, so the first steps would"
            " train nothing. Remove it from one group."
        )
