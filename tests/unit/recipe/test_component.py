"""Components made from a recipe's keys."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from vlkd_cli.errors import MissingPackageError, RecipeError
from vlkd_cli.recipe.component import check_value, make, typed_keys
from vlkd_cli.recipe.optimizers import optimizer_keys, optimizer_names
from vlkd_cli.recipe.params import Key
from vlkd_cli.recipe.types import (
    NonNegativeInt,
    Positive,
    Probability,
    Schedulable,
    Schedule,
)


class Stored:
    """Stores what it is made with."""

    def __init__(
        self,
        folder: str = "",
        *,
        pair: tuple[float, float] = (0, 1),
        temperature: Schedulable = 1.0,
        share: Probability = 0.5,
        mode: Literal["slow", "fast"] = "fast",
        path: Path | None = None,
    ) -> None:
        self.made = (folder, pair, temperature, share, mode, path)


NAME = f"{__name__}:Stored"


def test_keys_arrive_in_their_declared_types():
    made = make(
        "sink",
        NAME,
        {"pair": [1, 2], "temperature": {"linear": [0.1, 0.2]}, "share": 1, "path": "x/y"},
        "here",
    ).made
    assert made == ("here", (1.0, 2.0), Schedule(linear=(0.1, 0.2)), 1.0, "fast", Path("x/y"))
    assert isinstance(made[1], tuple)


def test_every_wrong_key_is_reported_at_once():
    with pytest.raises(RecipeError) as caught:
        typed_keys("sink", NAME, {"par": [1, 2], "share": 2, "mode": "fats"})
    assert str(caught.value).splitlines() == [
        (
            f"sink '{NAME}': par: unknown key. Did you mean 'pair'? Accepted: pair, temperature,"
            " share, mode, path."
        ),
        f"sink '{NAME}': share: expected a number of at least 0 and of at most 1, got 2.",
        f"sink '{NAME}': mode: expected 'slow' or 'fast', got 'fats'. Did you mean 'fast'?",
    ]


def test_an_unknown_name_names_the_closest():
    with pytest.raises(RecipeError, match="unknown sink 'wandd'. Did you mean 'wandb'?"):
        make("sink", "wandd", {})


def test_optimizers_are_those_of_torch_and_two_of_timm():
    assert {"adamw", "sgd", "adam", "nadam", "rmsprop", "lars", "lion"} <= set(optimizer_names())
    assert not {"lbfgs", "sparseadam", "optimizer", "lr_scheduler"} & set(optimizer_names())


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("adamw", {"betas", "eps"}),
        ("sgd", {"momentum", "nesterov"}),
        ("lars", {"momentum", "trust_coeff"}),
        ("lion", {"betas"}),
    ],
)
def test_optimizer_keys_are_read_from_the_libraries(name, keys):
    found = {key.name for key in optimizer_keys(name)}
    assert keys <= found
    assert not {"lr", "weight_decay", "params", "fused", "foreach"} & found


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "expected a finite number, got .inf."),
        (-float("inf"), "expected a finite number, got -.inf."),
        (float("nan"), "expected a finite number, got .nan."),
        (10**20, f"expected a number of at most {2**63 - 1}, got {10**20}."),
        (-(10**20), f"expected a number of at most {2**63 - 1}, got -{10**20}."),
    ],
)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, x], lambda x: {"deep": [{"x": x}]}])
def test_a_number_that_no_tensor_holds_is_refused_wherever_it_is(wrap, value, message):
    (problem,) = check_value(Key("any", Any), wrap(value), ("a",))
    assert problem.text == message


def test_large_numbers_that_are_meant_are_taken():
    assert check_value(Key("seed", NonNegativeInt), 2**63 - 1, ("seed",)) == []
    assert check_value(Key("lr", Positive), 1e-300, ("lr",)) == []


def test_a_library_that_is_imported_only_when_made_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="sink 'wandb' needs an optional package"):
        make("sink", "wandb", {}, tmp_path)
