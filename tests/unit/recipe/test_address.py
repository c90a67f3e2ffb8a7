"""Addresses and the arrows that two-tower recipes get without them."""

from __future__ import annotations

import pytest
import yaml

from tests.support.recipes import SMALL, recipe
from vlkd_cli.recipe.address import (
    Address,
    Arrow,
    Call,
    SideError,
    Written,
    addresses_of,
    arrow_of,
    modality_of,
    parse_address,
    pictures_of,
    text_names,
)
from vlkd_cli.recipe.schema import DataSpec, DistillerSpec, Recipe

SEVERAL = (
    "data.augment={name: simclr, copies: 2}",
    "data.views={local: {name: simclr, copies: 3}, same: null}",
    "towers.text.train=none",
    "distillers=[{name: simreg, student: [image@main.1, image@same], teacher: image@local.1}]",
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("image", Written("image")),
        ("image.backbone", Written("image", "backbone")),
        ("image.tokens", Written("image", "tokens")),
        ("image.project", Written("image", "project")),
        ("image.head@view_b", Written("image", "head", "view_b")),
        ("text@second", Written("text", "head", "second")),
        ("image@main.2", Written("image", "head", "main", 2)),
        ("image.project@local.2-5", Written("image", "project", "local", 2, 5)),
    ],
)
def test_addresses_are_read(text, written):
    assert parse_address(text) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "image@",
        "a b",
        ".head",
        "image.backbone.head",
        "image.1",
        "image@1",
        "image@a.2-",
        "1.x",
    ],
)
def test_other_texts_are_not_addresses(text):
    with pytest.raises(ValueError, match="is not an address. Write tower, tower.backbone,"):
        parse_address(text)


def test_pictures_count_from_one_and_ranges_rise():
    with pytest.raises(ValueError, match=r"'image@b.0': pictures count from 1. Write @b.1"):
        parse_address("image@b.0")
    with pytest.raises(ValueError, match="'image@b.5-2': write the range as 2-5"):
        parse_address("image@b.5-2")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("image"), "image"),
        (Address("image", "project"), "image.project"),
        (Address("image", "backbone", "b"), "image.backbone@b"),
        (Address("image", picture=2), "image@main.2"),
        (Address("image", "project", "b", 3), "image.project@b.3"),
    ],
)
def test_addresses_are_written_as_recipes_write_them(address, text):
    assert str(address) == text


def test_an_address_means_every_picture_unless_it_numbers_them():
    assert Written("image").expand() == (Address("image"),)
    assert Written("image", "head", "b").expand(2) == (
        Address("image", "head", "b", 1),
        Address("image", "head", "b", 2),
    )
    assert Written("image", "head", "b", 2, 3).expand(5) == (
        Address("image", "head", "b", 2),
        Address("image", "head", "b", 3),
    )
    assert Written("image", "head", "b", 2).expand(5) == (Address("image", "head", "b", 2),)


def test_a_view_has_its_own_inputs_and_all_pictures_of_a_view_the_same():
    assert Address("image", "backbone").input_key == "image"
    assert Address("image", "head", "b").input_key == "image@b"
    assert Address("image", "head", "b", 3).input_key == "image@b"


def test_a_view_has_as_many_pictures_as_copies():
    data = recipe(SMALL, *SEVERAL).data
    assert [pictures_of(data, view) for view in ("main", "local", "same")] == [2, 3, 1]
    assert pictures_of(recipe().data) == 1


def test_a_side_lists_the_pictures_of_its_views_in_order():
    several = recipe(SMALL, *SEVERAL)
    assert [str(a) for a in addresses_of(several, ["image", "image@local"])] == [
        "image",
        "image@main.2",
        "image@local",
        "image@local.2",
        "image@local.3",
    ]
    assert [str(a) for a in addresses_of(several, "image@local.2-3")] == [
        "image@local.2",
        "image@local.3",
    ]
    assert addresses_of(several, "text") == (Address("text"),), "a text has no pictures"


def test_named_texts_are_the_readers():
    assert text_names(recipe().data) == []
    assert text_names(DataSpec(reader="csv", texts={"answer": "a", "wrong": "b"})) == [
        "answer",
        "wrong",
    ]
    mix = DataSpec(readers=[{"reader": "csv", "texts": {"a": "x"}}, {"reader": "csv"}])
    assert text_names(mix) == ["a"]


def arrow(*options: str, name: str = "infonce", **sides: str | list[str]) -> Arrow:
    return arrow_of(recipe(SMALL, *options), DistillerSpec(name=name, **sides))


def one_call(student, teacher) -> Arrow:
    return Arrow((Call(student, teacher),))


IMAGE, TEXT = Address("image"), Address("text")


def test_by_default_the_image_tower_learns_from_the_text_tower():
    assert arrow() == one_call(IMAGE, TEXT)
    assert arrow("towers.text.train=none") == one_call(IMAGE, TEXT)


def test_a_frozen_image_tower_is_the_teacher():
    assert arrow("towers.image.train=none") == one_call(TEXT, IMAGE)


def test_one_given_side_determines_the_other():
    assert arrow(teacher="image") == one_call(TEXT, IMAGE)
    assert arrow(student="image.backbone") == one_call(Address("image", "backbone"), TEXT)


def test_an_objective_without_a_teacher_has_none():
    assert arrow(name="cross_entropy") == one_call(IMAGE, None)


def test_pairs_go_from_the_towers_to_their_teachers():
    teachers = [
        f"towers.teacher_{side}={{builder: openclip, model: RN50, train: none}}"
        for side in ("image", "text")
    ]
    pairs = arrow_of(
        recipe(SMALL, *teachers, "distillers=[{name: affinity}]"), DistillerSpec(name="affinity")
    )
    assert pairs == one_call((IMAGE, TEXT), (Address("teacher_image"), Address("teacher_text")))
    with pytest.raises(
        SideError,
        match="by default teacher_image and teacher_text, but the recipe has no tower"
        " 'teacher_image'",
    ) as error:
        arrow(name="affinity")
    assert error.value.side == "teacher"


def test_as_many_students_as_teachers_are_one_call_each():
    two = arrow(*SEVERAL, name="simreg", student="image", teacher=["image@local.1", "text"])
    assert two.calls == (
        Call(Address("image"), Address("image", "head", "local")),
        Call(Address("image", picture=2), TEXT),
    )
    assert two.addresses() == [
        Address("image"),
        Address("image", "head", "local"),
        Address("image", picture=2),
        TEXT,
    ]


def test_one_teacher_serves_all_students():
    assert arrow(*SEVERAL, name="simreg", student="image", teacher="text").calls == (
        Call(Address("image"), TEXT),
        Call(Address("image", picture=2), TEXT),
    )


def test_other_numbers_do_not_pair_up():
    with pytest.raises(SideError, match="2 students and 3 teachers do not pair up. Give one"):
        arrow(*SEVERAL, name="simreg", student="image", teacher="image@local")


def test_a_list_goes_to_one_call_where_the_distiller_takes_lists():
    views = arrow(*SEVERAL, name="dino", student="image@local", teacher="image@same")
    assert views.calls == (
        Call(
            tuple(Address("image", "head", "local", picture) for picture in (1, 2, 3)),
            Address("image", "head", "same"),
        ),
    )


def test_episodes_read_the_sides_of_their_distiller():
    assert arrow().episode is None
    assert arrow(name="protoclip").episode_addresses() == [IMAGE, TEXT]


@pytest.mark.parametrize(
    ("name", "keys", "modality"),
    [
        ("image", "builder: openclip, model: RN50", "image"),
        ("teacher_text", "builder: openclip, model: RN50", "text"),
        ("second", "run: runs/a", None),
        ("second", "run: runs/a, modality: text", "text"),
        ("imagery", "run: runs/a", None),
        ("second", "builder: huggingface, model: bert-base-uncased", "text"),
        ("text_like", "builder: timm, model: resnet10t", "image"),
        ("second", "follows: text", "text"),
        ("image_key", "follows: image", "image"),
    ],
)
def test_one_rule_determines_a_tower_s_modality(name, keys, modality):
    text = "{builder: openclip, config: {layers: 2, width: 64, heads: 2}}"
    image = "{builder: torchvision, model: resnet18}"
    towers = Recipe.model_validate(
        yaml.safe_load(f"towers: {{text: {text}, image: {image}, {name}: {{{keys}}}}}")
        if name not in ("image",)
        else yaml.safe_load(f"towers: {{{name}: {{{keys}}}}}")
    ).towers
    assert modality_of(towers, name) == modality
