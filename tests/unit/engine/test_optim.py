from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.engine.optim import (
    build_optimizer,
    drop_waiting,
    optimizer_class,
    optimizer_state,
    restore_optimizer,
    set_rates,
)
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.optimizers import optimizer_names
from vlkd_cli.recipe.schema import Recipe, ScheduleSpec
from vlkd_cli.recipe.types import Progress

RUN = Progress(0, steps_per_epoch=5, total_steps=20)
CONSTANT = ScheduleSpec(name="constant")


def optimizer_of(**sections: object) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    recipe = Recipe.model_validate(tiny_recipe(**sections))
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    composition = build_composition(recipe, towers)
    optimizer = build_optimizer(composition, recipe, RUN)
    return optimizer, dict(composition.named_parameters())


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
    set_rates(optimizer, ScheduleSpec(name="constant", warmup_steps=10), RUN)
    assert sorted({round(group["lr"], 12) for group in optimizer.param_groups}) == [1e-6, 1e-4]


def test_nothing_that_learns_is_an_error() -> None:
    frozen = {"image": {**IMAGE, "train": "none"}, "text": {**TEXT, "train": "none"}}
    with pytest.raises(RecipeError, match="nothing to train: every tower is frozen"):
        optimizer_of(towers=frozen, distillers=[{"name": "infonce", "learnable": False}])


def test_a_distiller_may_have_its_own_rate() -> None:
    optimizer, parameters = optimizer_of(distillers=[{"name": "infonce", "lr": 0.5}])
    rates = {name: setting(optimizer, p, "lr") for name, p in parameters.items()}
    assert {value for name, value in rates.items() if name.startswith("distillers.")} == {0.5}
    assert {value for name, value in rates.items() if name.startswith("towers.")} == {1e-3}
    with pytest.raises(RecipeError, match="'simreg' has no parameters, so its `lr` has no effect"):
        optimizer_of(distillers=[{"name": "simreg", "lr": 0.5}])


# -- optimizer.groups ------------------------------------------------------------------------------


def groups_of(*groups: dict[str, Any], **settings: Any) -> tuple[Any, dict[str, Any]]:
    """The optimizer with these groups, and its own group of each parameter by name."""
    towers = {"image": {**IMAGE, "lr": 1e-2}, "text": TEXT}
    optimizer, _ = optimizer_of(towers=towers, optimizer={**settings, "groups": list(groups)})
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    return optimizer, found


def test_the_first_group_that_matches_decides_and_others_keep_the_optimizers_settings() -> None:
    _, found = groups_of(
        {"match": ["text.*token_embedding*", "distillers.*"], "lr_factor": 0.1},
        {"match": ["text.*"], "lr_factor": 0.5, "weight_decay": 0.7, "betas": [0.5, 0.6]},
    )
    embedding = next(group for name, group in found.items() if "token_embedding" in name)
    projection = found["text.backbone.encoder.text_projection"]
    bias = next(found[name] for name in found if name.startswith("text.") and "bias" in name)
    image = found["image.backbone.encoder.proj"]
    assert [g["lr"] for g in (embedding, projection, bias)] == pytest.approx([1e-4, 5e-4, 5e-4])
    assert found["distillers.infonce.log_scale"]["lr"] == pytest.approx(1e-4)
    assert image["lr"] == 1e-2, "a factor multiplies the tower's own rate, and only in its group"
    assert [g["weight_decay"] for g in (embedding, projection, bias)] == [0.2, 0.7, 0.0]
    assert [g["betas"] for g in (embedding, projection, image)] == [
        (0.9, 0.999),
        (0.5, 0.6),
        (0.9, 0.999),
    ]


def test_a_group_may_have_a_schedule_of_its_own() -> None:
    optimizer, found = groups_of(
        {"match": ["text.*"], "schedule": "constant"},
        {"match": ["distillers.*"], "schedule": {"name": "linear", "end_factor": 0.5}},
    )
    half = RUN._replace(step=10)
    set_rates(optimizer, ScheduleSpec(name="linear"), half)
    assert found["text.backbone.encoder.text_projection"]["lr"] == pytest.approx(1e-3)
    assert found["distillers.infonce.log_scale"]["lr"] == pytest.approx(0.75e-3)
    assert found["image.backbone.encoder.proj"]["lr"] == pytest.approx(0.5e-2)


def test_weight_decay_follows_its_schedule_and_spares_biases() -> None:
    optimizer, found = groups_of(
        {"match": ["text.*"], "weight_decay": {"linear": [0.0, 0.4], "steps": 5}},
        weight_decay={"cosine": [0.04, 0.4]},
    )
    bias = next(found[name] for name in found if name.startswith("image.") and "bias" in name)
    for step, text, image in ((0, 0.0, 0.04), (2, 0.2, None), (19, 0.4, 0.4)):
        set_rates(optimizer, CONSTANT, RUN._replace(step=step))
        assert found["text.backbone.encoder.text_projection"]["weight_decay"] == pytest.approx(text)
        if image is not None:
            assert found["image.backbone.encoder.proj"]["weight_decay"] == pytest.approx(image)
        assert bias["weight_decay"] == 0.0


@pytest.mark.parametrize("start", [{"steps": 10}, {"epochs": 2}])
def test_the_gradients_of_a_group_are_dropped_until_it_starts(start: dict[str, int]) -> None:
    optimizer, found = groups_of({"match": ["text.*"], "from": start})
    text = found["text.backbone.encoder.text_projection"]["params"]
    image = found["image.backbone.encoder.proj"]["params"]
    for step in (9, 10):
        for parameter in (*text, *image):
            parameter.grad = torch.ones_like(parameter)
        drop_waiting(optimizer, step)
        assert [parameter.grad is None for parameter in text] == [step == 9] * len(text)
        assert all(parameter.grad is not None for parameter in image)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [{"match": ["text.*", "txt.*"], "lr_factor": 0.1}],
            r"groups\[0\].match\[1\]: 'txt.\*' matches no trainable parameter. They are named like",
        ),
        (
            [{"match": ["text.*"], "lr_factor": 0.1}, {"match": ["text.*bias"], "lr_factor": 1}],
            r"groups\[1\].match\[0\]: 'text.\*bias' matches only parameters that an earlier group",
        ),
        (
            [{"match": ["*.bias"], "weight_decay": 0.1}],
            r"groups\[0\].weight_decay: has no effect: only biases, norms and scales match",
        ),
        (
            [{"match": ["text.*"], "from": {"epochs": 4}}],
            r"groups\[0\].from: step 20 is beyond the run of 20 steps",
        ),
        (
            [{"match": ["*"], "from": {"steps": 1}}],
            "optimizer.groups: every parameter starts later by `from`",
        ),
        ([{"match": ["text.*"], "momentum": 0.9}], "unknown key.*momentum|momentum.*unknown key"),
    ],
)
def test_a_group_without_effect_is_refused(groups: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        groups_of(*groups)


# -- what is stored --------------------------------------------------------------------------------


def test_state_is_stored_by_the_parameters_names_and_restored_by_them_or_by_position() -> None:
    optimizer, found = groups_of({"match": ["text.*"], "lr_factor": 0.5})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = optimizer_state(optimizer)
    assert set(state) == set(found) and "distillers.infonce.log_scale" in state
    by_position = {str(position): values for position, values in enumerate(state.values())}
    for saved in (dict(reversed(state.items())), by_position):
        other, _ = groups_of({"match": ["text.*"], "lr_factor": 0.5})
        restore_optimizer(other, saved)
        again = optimizer_state(other)
        assert all(again[name]["exp_avg"].equal(state[name]["exp_avg"]) for name in state)
        assert again["distillers.infonce.log_scale"]["exp_avg"] is not None


def test_state_of_other_parameters_is_refused() -> None:
    optimizer, _ = groups_of()
    with pytest.raises(ValueError, match="no parameter 'image.x'"):
        restore_optimizer(optimizer, {"image.x": {}})
    with pytest.raises(ValueError, match="exp_avg of 'image.backbone.encoder.proj' has another"):
        restore_optimizer(optimizer, {"image.backbone.encoder.proj": {"exp_avg": torch.ones(3)}})


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_continues_from_its_stored_state(name: str) -> None:
    def made() -> torch.optim.Optimizer:
        torch.manual_seed(0)
        weight, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.ones(2))
        named = [("a.weight", weight), ("a.bias", bias)]
        keys = {"momentum": 0.9} if name in ("sgd", "lars") else {}
        return optimizer_class(name)([{"params": named, "lr": 0.1}], lr=0.1, **keys)  # type: ignore[call-arg, arg-type]

    def step(optimizer: torch.optim.Optimizer, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        parameters = optimizer.param_groups[0]["params"]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        return [parameter.detach().clone() for parameter in parameters]

    whole, resumed = made(), made()
    weights = step(whole, 1)
    saved = {key: dict(values) for key, values in optimizer_state(whole).items()}
    for values in saved.values():
        values.update({k: v.clone() for k, v in values.items() if isinstance(v, torch.Tensor)})
    for parameter, value in zip(resumed.param_groups[0]["params"], weights, strict=True):
        parameter.data.copy_(value)
    restore_optimizer(resumed, saved)
    for seed in (2, 3):
        pairs = zip(step(whole, seed), step(resumed, seed), strict=True)
        assert all(a.equal(b) for a, b in pairs)
