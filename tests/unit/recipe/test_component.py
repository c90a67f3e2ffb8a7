"""Components made from a recipe's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.component import make, typed_keys
from vlkd_cli.recipe.optimizers import optimizer_keys, optimizer_names
from vlkd_cli.recipe.types import Probability, Schedulable, Schedule


class Kept:
    """Keeps what it is made with."""

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


NAME = f"{__name__}:Kept"


def test_keys_arrive_in_their_declared_types():
    made = make(
        "sink",
        NAME,
        {"pair": [1, 2], "temperature": {"linear": [0.1, 0.2]}, "share": 1, "path": "x/y"},
        "here",
    ).made
    assert made == ("here", (1.0, 2.0), Schedule(linear=(0.1, 0.2)), 1.0, "fast", Path("x/y"))
    assert isinstance(made[1], tuple)


def test_every_wrong_key_is_told_at_once():
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
