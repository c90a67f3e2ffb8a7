"""Optimizers and their parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.composition.composition import Composition
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.component import typed_keys
from vlkd_cli.recipe.schema import OptimizerSpec, TowerSpec
from vlkd_cli.recipe.types import value_at
from vlkd_cli.towers.tower import Tower


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """adamw, sgd, lars, lion, or any class of torch.optim by its name in any case.

    Raises:
        RecipeError: no such optimizer.
    """
    if name in ("lars", "lion"):
        from timm.optim import Lars, Lion

        chosen: type[torch.optim.Optimizer] = Lars if name == "lars" else Lion
        return chosen
    classes = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    # A closure, and sparse gradients, are things that a training step here does not give.
    for unusable in ("lbfgs", "sparseadam"):
        classes.pop(unusable, None)
    if name.lower() not in classes:
        choices = sorted([*classes, "lars", "lion"])
        raise RecipeError(
            f"optimizer.name: unknown optimizer '{name}'.{did_you_mean(name, choices)} Known:"
            f" {', '.join(choices)}."
        )
    return classes[name.lower()]


def build_optimizer(
    composition: Composition,
    spec: OptimizerSpec,
    towers: Mapping[str, TowerSpec],
    device: torch.device,
) -> Any:
    """The optimizer over everything that learns, grouped by learning rate and weight decay.

    Each group carries `base_lr`, which the schedule's factor multiplies. Biases, norms and scales
    (everything with fewer than two dimensions) are not decayed unless `decay_all` says so. With
    `layer_decay` d, a tower's layer that lies k below its head learns at d**k times the tower's
    rate (Bao et al., BEiT, arXiv:2106.08254).

    Raises:
        RecipeError: unknown optimizer, a key that it does not take, or nothing that learns.
    """
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter, lr, decay in _settings(composition, spec, towers):
        groups.setdefault((lr, decay), []).append((name, parameter))
    if not groups:
        raise RecipeError(
            "nothing learns: every tower is frozen and no distiller has parameters. Give a tower"
            " `train: head` or `all`."
        )
    kind: Any = optimizer_class(spec.name)
    keys = typed_keys("optimizer", spec.name, spec.keys)
    if kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD) and not {
        "foreach",
        "fused",
        "maximize",
    } & set(keys):
        keys["fused"] = True
    try:
        return kind(
            [
                {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
                for (lr, decay), parameters in groups.items()
            ],
            lr=spec.lr,
            **keys,
        )
    except (ValueError, TypeError, RuntimeError) as error:
        # Values out of a method's range, which its signature does not tell.
        reason = str(error).rstrip(".")
        raise RecipeError(f"optimizer '{spec.name}': {reason}. Correct its keys.") from error


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its base rate times the factor; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer remembers of each parameter, by the parameter's name. Rates and the like
    are not in it: they follow from the recipe and the step."""
    names = _names(optimizer)
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {names[position]: values for position, values in state.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    """Take in what `optimizer_state` gave; names may also be positions, as in format 1.

    Raises:
        ValueError: it is of other parameters.
    """
    names = _names(optimizer)
    own = optimizer.state_dict()
    position_of = {name: position for position, name in enumerate(names)}
    if saved and all(key.isdecimal() for key in saved):
        position_of = {str(position): position for position in range(len(names))}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})


def _names(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def _fits(value: Any, parameter: nn.Parameter) -> bool:
    # A count, or one number for each entry, or (Adafactor) for each row or column of a matrix.
    return (
        not isinstance(value, torch.Tensor)
        or value.ndim == 0
        or (
            value.ndim == parameter.ndim
            and all(a in (b, 1) for a, b in zip(value.shape, parameter.shape, strict=True))
        )
    )


def _settings(
    composition: Composition, spec: OptimizerSpec, towers: Mapping[str, TowerSpec]
) -> Iterator[tuple[str, nn.Parameter, float, float]]:
    """(name, parameter, learning rate, weight decay) of everything that learns, each once; names
    are `TOWER.x` and `distillers.NAME.x`."""
    seen: set[nn.Parameter] = set()
    for tower_name, tower in composition.towers.items():
        assert isinstance(tower, Tower)
        lr = towers[tower_name].lr or spec.lr
        layer_decay = towers[tower_name].layer_decay
        for name, parameter in tower.named_parameters():
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            rate = (
                lr
                if layer_decay is None
                else lr * layer_decay ** (tower.num_layers - 1 - tower.layer_of(name))
            )
            yield f"{tower_name}.{name}", parameter, rate, _decay(parameter, spec)
    for name, parameter in composition.distillers.named_parameters():
        if parameter.requires_grad and parameter not in seen:
            seen.add(parameter)
            yield f"distillers.{name}", parameter, spec.lr, _decay(parameter, spec)


def _decay(parameter: nn.Parameter, spec: OptimizerSpec) -> float:
    # A column such as IA3's (64, 1) scales, however many dimensions it is written in.
    is_matrix = sum(size > 1 for size in parameter.shape) >= 2
    return value_at(spec.weight_decay, 0) if spec.decay_all or is_matrix else 0.0
