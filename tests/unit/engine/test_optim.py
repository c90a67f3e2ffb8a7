from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.engine.build import build_composition, build_towers
from vlkd_cli.engine.optim import build_optimizer, set_learning_rate
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import Recipe

CPU = torch.device("cpu")


def optimizer_of(**sections: object) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    recipe = Recipe.model_validate(tiny_recipe(**sections))
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    composition = build_composition(recipe, towers)
    return build_optimizer(composition, recipe.optimizer, recipe.towers, CPU), dict(
        composition.named_parameters()
    )


def setting(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str) -> float:
    return next(
        float(group[name])
        for group in optimizer.param_groups
        if any(parameter is p for p in group["params"])
    )


def test_biases_norms_and_scales_are_not_decayed() -> None:
    optimizer, parameters = optimizer_of(optimizer={"weight_decay": 0.3})
    decayed = {
        name
        for name, parameter in parameters.items()
        if setting(optimizer, parameter, "weight_decay") == 0.3
    }
    assert all(parameters[name].ndim >= 2 for name in decayed) and len(decayed) > 5
    assert not any(name.endswith(("bias", "log_scale")) or "ln_" in name for name in decayed)


def test_everything_is_decayed_when_asked() -> None:
    optimizer, parameters = optimizer_of(optimizer={"weight_decay": 0.3, "decay_all": True})
    assert {setting(optimizer, parameter, "weight_decay") for parameter in parameters.values()} == {
        0.3
    }


def test_a_tower_may_have_its_own_rate() -> None:
    optimizer, parameters = optimizer_of(
        towers={"image": {**IMAGE, "lr": 1e-5}}, optimizer={"lr": 1e-3}
    )
    rates = {
        name.split(".")[1]: setting(optimizer, p, "lr")
        for name, p in parameters.items()
        if name.startswith("towers.")
    }
    assert rates == {"image": 1e-5, "text": 1e-3}


def test_layer_decay_lowers_the_rate_towards_the_input() -> None:
    two = {**IMAGE, "config": {**IMAGE["config"], "layers": 2}, "layer_decay": 0.5}
    optimizer, parameters = optimizer_of(towers={"image": two}, optimizer={"lr": 1.0})
    rate = {
        name: setting(optimizer, p, "lr")
        for name, p in parameters.items()
        if name.startswith("towers.image")
    }
    first = next(value for name, value in rate.items() if "resblocks.0." in name)
    second = next(value for name, value in rate.items() if "resblocks.1." in name)
    assert first == second / 2 and min(rate.values()) < second <= max(rate.values()) == 1.0


def test_the_factor_multiplies_every_groups_own_rate() -> None:
    optimizer, _ = optimizer_of(towers={"image": {**IMAGE, "lr": 1e-5}}, optimizer={"lr": 1e-3})
    set_learning_rate(optimizer, 0.1)
    assert sorted({round(group["lr"], 12) for group in optimizer.param_groups}) == [1e-6, 1e-4]


def test_nothing_that_learns_is_an_error() -> None:
    frozen = {"image": {**IMAGE, "train": "none"}, "text": {**TEXT, "train": "none"}}
    with pytest.raises(RecipeError, match="nothing learns: every tower is frozen"):
        optimizer_of(towers=frozen, distillers=[{"name": "infonce", "learnable": False}])
