from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.composition.composition import Composition
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build import build_composition, build_towers
from vlkd_cli.recipe.schema import Recipe


def compose(**sections: Any) -> Composition:
    recipe = Recipe.model_validate(tiny_recipe(**sections))
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    return build_composition(recipe, towers, steps_per_epoch=2, total_steps=4)


def batch_for(composition: Composition, views: tuple[str, ...] = ()) -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = {
        key: torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8, generator=draw)
        for key in ("image", *views)
    }
    tokens = composition.tower("text").tokenize(["a cat", "two dogs run", "a red ball", "snow"])  # type: ignore[union-attr]
    return Batch(
        {**images, "text": tokens, "teacher_text": tokens, "teacher_image": images["image"]},
        torch.arange(4),
        torch.full((4,), -1),
    )


def count_calls(composition: Composition, tower: str) -> list[int]:
    calls: list[int] = []
    original = composition.tower(tower)
    features = original.features

    def counted(inputs: Any) -> Tensor:
        calls.append(1)
        return features(inputs)

    original.features = counted  # type: ignore[method-assign, assignment]
    return calls


def test_a_tower_encodes_each_view_once_whatever_the_number_of_distillers() -> None:
    composition = compose(
        distillers=[
            {"name": "infonce"},
            {"name": "siglip", "weight": 0.5},
            {"name": "rkd", "student": "image.backbone"},
        ]
    )
    calls = count_calls(composition, "image")
    composition(batch_for(composition), 0)
    assert len(calls) == 1


def test_views_are_encoded_each() -> None:
    composition = compose(
        distillers=[{"name": "simreg", "student": "image", "teacher": "image@second"}],
        data={"views": {"second": None}},
    )
    assert composition.input_keys() == {"image": "image", "image@second": "image"}
    calls = count_calls(composition, "image")
    composition(batch_for(composition, ("image@second",)), 0)
    assert len(calls) == 2


def test_the_loss_is_the_weighted_sum_of_the_terms() -> None:
    composition = compose(
        distillers=[{"name": "infonce"}, {"name": "siglip", "weight": 0.25}]
    ).eval()
    output = composition(batch_for(composition), 0)
    torch.testing.assert_close(output.loss, output.terms["infonce"] + 0.25 * output.terms["siglip"])


def test_a_weight_may_follow_a_schedule() -> None:
    composition = compose(distillers=[{"name": "infonce", "weight": {"linear": [1.0, 0.0]}}]).eval()
    batch = batch_for(composition)
    assert composition(batch, 0).loss > 0
    torch.testing.assert_close(composition(batch, 3).loss, torch.zeros(()))


def test_a_distiller_used_twice_gets_a_number() -> None:
    composition = compose(
        distillers=[{"name": "infonce"}, {"name": "infonce", "student": "image.backbone"}]
    )
    assert set(composition.distillers) == {"infonce", "infonce_2"}


def test_a_frozen_tower_is_outside_the_module_and_takes_no_gradient() -> None:
    composition = compose(towers={"text": {**TEXT, "train": "none"}})
    assert set(composition.towers) == {"image"} and set(composition.frozen) == {"text"}
    assert not any(name.startswith("towers.text") for name in composition.state_dict())
    composition(batch_for(composition), 0).loss.backward()
    assert all(
        parameter.grad is None for parameter in composition.frozen["text"].encoder.parameters()
    )
    composition.train()
    assert not composition.frozen["text"].encoder.training


def test_by_default_the_frozen_tower_is_the_teacher() -> None:
    composition = compose(
        towers={"image": {**IMAGE, "train": "none"}}, distillers=[{"name": "simreg"}]
    )
    (call,) = composition.objectives[0].arrow.calls
    assert (str(call.student), str(call.teacher)) == ("text", "image")


def test_several_pairs_are_one_term_their_mean() -> None:
    sides = {"student": ["image", "image@second"], "teacher": ["image@second", "text"]}
    data = {"views": {"second": None}}
    together = compose(distillers=[{"name": "simreg", **sides}], data=data).eval()
    apart = compose(
        distillers=[
            {"name": "simreg", "student": student, "teacher": teacher}
            for student, teacher in zip(*sides.values(), strict=True)
        ],
        data=data,
    ).eval()
    batch = batch_for(together, ("image@second",))
    torch.testing.assert_close(together(batch, 0).loss, apart(batch, 0).loss / 2)


def test_a_follower_moves_towards_its_tower_at_commit_only() -> None:
    towers = {"image": IMAGE, "text": TEXT, "slow": {"follows": "image", "momentum": 0.75}}
    composition = compose(
        towers=towers,
        distillers=[{"name": "infonce"}, {"name": "simreg", "student": "image", "teacher": "slow"}],
    )
    live, slow = composition.towers["image"], composition.followers["slow"]
    before = next(slow.parameters()).clone()
    with torch.no_grad():
        next(live.parameters()).add_(1.0)
    composition.train()
    assert next(slow.parameters()).equal(before)
    composition.commit(0)
    torch.testing.assert_close(next(slow.parameters()), before + 0.25)
    assert not any(parameter.requires_grad for parameter in slow.parameters())
