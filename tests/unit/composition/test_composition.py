from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.builders.backbone import Encoded
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.momentum import MomentumTower
from vlkd_cli.composition.passes import Pass, encode
from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.recipe.address import Address
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.types import Progress

START = Progress(0, 2, 4)


def compose(**sections: Any) -> Composition:
    recipe = Recipe.model_validate(tiny_recipe(**sections))
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    return build_composition(recipe, towers)


def batch_for(composition: Composition, views: tuple[str, ...] = ()) -> Batch:
    draw = torch.Generator().manual_seed(0)
    images = {
        key: torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8, generator=draw)
        for key in ("image", *views)
    }
    tokens = composition.tower("text").input(["a cat", "two dogs run", "a red ball", "snow"])  # type: ignore[union-attr]
    return Batch(
        {**images, "text": tokens, "teacher_text": tokens, "teacher_image": images["image"]},
        torch.arange(4),
        torch.full((4,), -1),
    )


def count_calls(composition: Composition, tower: str) -> list[int]:
    """Grows by the number of pictures or texts of each run of the tower's backbone."""
    calls: list[int] = []
    original = composition.tower(tower)
    backbone = (original.tower if isinstance(original, MomentumTower) else original).encoder
    run = backbone.run

    def counted(inputs: Any, *, tokens: bool) -> Encoded:
        calls.append(len(inputs))
        return run(inputs, tokens=tokens)

    backbone.run = counted  # type: ignore[method-assign]
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
    composition(batch_for(composition), START)
    assert len(calls) == 1


def test_views_are_encoded_each() -> None:
    composition = compose(
        distillers=[{"name": "simreg", "student": "image", "teacher": "image@second"}],
        data={"views": {"second": None}},
    )
    assert composition.input_keys() == {"image": "image", "image@second": "image"}
    calls = count_calls(composition, "image")
    composition(batch_for(composition, ("image@second",)), START)
    assert len(calls) == 2


def test_the_loss_is_the_weighted_sum_of_the_terms() -> None:
    composition = compose(
        distillers=[{"name": "infonce"}, {"name": "siglip", "weight": 0.25}]
    ).eval()
    output = composition(batch_for(composition), START)
    torch.testing.assert_close(output.loss, output.terms["infonce"] + 0.25 * output.terms["siglip"])


def test_a_weight_may_follow_a_schedule() -> None:
    composition = compose(distillers=[{"name": "infonce", "weight": {"linear": [1.0, 0.0]}}]).eval()
    batch = batch_for(composition)
    assert composition(batch, START).loss > 0
    torch.testing.assert_close(composition(batch, Progress(3, 2, 4)).loss, torch.zeros(()))


def test_a_distiller_used_twice_gets_a_number() -> None:
    composition = compose(
        distillers=[{"name": "infonce"}, {"name": "infonce", "student": "image.backbone"}]
    )
    assert set(composition.distillers) == {"infonce", "infonce_2"}


def test_a_frozen_tower_is_outside_the_module_and_takes_no_gradient() -> None:
    composition = compose(towers={"text": {**TEXT, "train": "none"}})
    assert set(composition.towers) == {"image"} and set(composition.frozen) == {"text"}
    assert not any(name.startswith("towers.text") for name in composition.state_dict())
    composition(batch_for(composition), START).loss.backward()
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
    torch.testing.assert_close(together(batch, START).loss, apart(batch, START).loss / 2)


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
    composition.commit(START)
    torch.testing.assert_close(next(slow.parameters()), before + 0.25)
    assert not any(parameter.requires_grad for parameter in slow.parameters())


HEADS = {
    "project": {"name": "linear", "width": 8},
    "predict": {"name": "linear", "width": 8, "reads": "project"},
}


def test_a_head_that_is_read_twice_runs_once_and_a_follower_takes_what_is_read() -> None:
    composition = compose(
        towers={"image": {**IMAGE, "heads": HEADS}, "text": TEXT, "slow": {"follows": "image"}},
        distillers=[
            {"name": "infonce"},
            {"name": "simreg", "student": "image.predict", "teacher": "slow.project"},
            {"name": "simreg", "student": "image.predict", "teacher": "image.project"},
        ],
    )
    live: Any = composition.towers["image"]
    calls: list[int] = []
    live.heads.project.register_forward_hook(lambda *_: calls.append(1))
    encoded = count_calls(composition, "image")
    composition(batch_for(composition), START)
    assert len(calls) == 1 and encoded == [4]
    assert list(composition.followers["slow"].tower.graph.links) == ["project"]  # type: ignore[union-attr]
    assert composition.passes == (
        Pass("image", "main", {"head": (1,), "predict": (1,), "project": (1,)}),
        Pass("text", "main", {"head": (1,)}),
        Pass("slow", "main", {"project": (1,)}),
    )


def test_a_follower_reads_the_entry_of_the_followed_tower() -> None:
    composition = compose(
        towers={"image": IMAGE, "text": TEXT, "slow": {"follows": "image"}},
        distillers=[
            {"name": "infonce"},
            {"name": "simreg", "student": "image", "teacher": "slow"},
            {"name": "simreg", "student": "image", "teacher": "slow@second"},
        ],
        data={"views": {"second": None}},
    )
    assert composition.input_keys() == {"image": "image", "text": "text", "image@second": "image"}


VIEWS = {"augment": {"name": "simclr", "copies": 3}, "views": {"local": {"name": "simclr"}}}


def pictures_for(composition: Composition, count: int) -> Batch:
    batch = batch_for(composition, ("image@local",))
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(0, 255, (4, count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return replace(batch, inputs={**batch.inputs, "image": images})


def test_all_pictures_of_a_view_pass_a_tower_at_once() -> None:
    composition = compose(
        distillers=[
            {"name": "simreg", "student": "image@main.1-2", "teacher": "image@local"},
            {"name": "simreg", "student": "image@main.3", "teacher": "image@main.1"},
        ],
        data=VIEWS,
    )
    encoded = count_calls(composition, "image")
    composition(pictures_for(composition, 3), START)
    assert encoded == [12, 4]


def test_each_picture_is_what_encoding_it_alone_gives() -> None:
    composition = compose(
        distillers=[{"name": "simreg", "student": "image@main.3", "teacher": "image@main.1"}],
        data=VIEWS,
    ).eval()
    batch = pictures_for(composition, 3)
    found = encode(composition.passes, composition.all_towers, (), batch, START)
    images = batch.inputs["image"]
    tower = composition.towers["image"]
    for picture in (1, 3):
        values = found[Address("image", "head", "main", picture)].values
        torch.testing.assert_close(values, tower.encode(images[:, picture - 1]))  # type: ignore[operator, index]


def masked(
    at: str, masks: str = "none", hidden: Tensor | None = None
) -> tuple[Composition, Batch, Address]:
    heads = {"patch": {"name": "linear", "width": 4, "reads": "tokens", "at": at}}
    composition = compose(
        towers={"image": {**IMAGE, "heads": heads, "masks": masks}, "text": TEXT},
        distillers=[
            {"name": "simreg", "student": "image.patch@main.2", "teacher": "image.patch@main.1"}
        ],
        data={"augment": {"name": "simclr", "copies": 2}},
    ).eval()
    batch = pictures_for(composition, 2)
    draw = torch.Generator().manual_seed(2)
    if hidden is None:
        hidden = torch.rand(4, 2, 16, generator=draw).argsort(2) < 6
    return (
        composition,
        replace(batch, hidden={"main": hidden}),
        Address("image", "patch", picture=2),
    )


def test_hidden_places_of_each_picture_are_those_of_its_mask() -> None:
    composition, batch, address = masked("hidden")
    found = encode(composition.passes, composition.all_towers, (), batch, START)[address]
    assert found.values.shape == (4, 6, 4) and found.counts is None
    tower: Any = composition.towers["image"]
    every = tower(batch.inputs["image"][:, 1], ("patch",))["patch"]  # type: ignore[index]
    torch.testing.assert_close(found.values.flatten(0, 1), every[batch.hidden["main"][:, 1]])


def test_hidden_places_of_varying_number_are_cut_by_picture() -> None:
    draw = torch.Generator().manual_seed(3)
    hidden = torch.rand(4, 2, 16, generator=draw) < 0.4
    composition, batch, address = masked("hidden", "replace", hidden)
    found = encode(composition.passes, composition.all_towers, (), batch, START)[address]
    assert found.counts is not None and found.counts.equal(hidden[:, 1].sum(1))
    tower: Any = composition.towers["image"]
    every = tower(batch.inputs["image"][:, 1], ("patch",), hidden=hidden[:, 1])["patch"]  # type: ignore[index]
    torch.testing.assert_close(found.values, every)


def test_a_dropping_tower_encodes_the_visible_places_only() -> None:
    composition, batch, address = masked("all", "drop")
    found = encode(composition.passes, composition.all_towers, (), batch, START)[address]
    assert found.values.shape == (4, 10, 4)
