"""Addresses and the arrows that two-tower recipes get without them."""

from __future__ import annotations

import pytest

from tests.support.recipes import SMALL, recipe
from vlkd_cli.recipe.address import Address, Arrow, arrow_of, modality_of, parse_address
from vlkd_cli.recipe.schema import DistillerSpec


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("image", Address("image", "head", "main")),
        ("image.backbone", Address("image", "backbone", "main")),
        ("image.head@view_b", Address("image", "head", "view_b")),
        ("text@second", Address("text", "head", "second")),
    ],
)
def test_addresses_are_read_and_written(text, address):
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "image.tail", "image@", "a b", ".head", "image.backbone.head"]
)
def test_other_texts_are_no_addresses(text):
    with pytest.raises(ValueError, match="is no address"):
        parse_address(text)


def test_a_view_has_its_own_inputs():
    assert Address("image", "backbone").input_key == "image"
    assert Address("image", "head", "b").input_key == "image@b"


def arrow(
    *options: str, takes: str = "one", needs_teacher: bool = True, spec: DistillerSpec | None = None
) -> Arrow:
    return arrow_of(
        recipe(SMALL, *options), spec or DistillerSpec(name="infonce"), takes, needs_teacher
    )


IMAGE, TEXT = Address("image"), Address("text")


def test_by_default_the_image_tower_learns_from_the_text_tower():
    assert arrow() == Arrow(IMAGE, TEXT)
    assert arrow("towers.text.train=none") == Arrow(IMAGE, TEXT)


def test_a_frozen_image_tower_is_the_teacher():
    assert arrow("towers.image.train=none") == Arrow(TEXT, IMAGE)


def test_one_given_side_tells_the_other():
    assert arrow(spec=DistillerSpec(name="infonce", teacher="image")) == Arrow(TEXT, IMAGE)
    assert arrow(spec=DistillerSpec(name="infonce", student="image.backbone")) == Arrow(
        Address("image", "backbone"), TEXT
    )


def test_an_objective_without_a_teacher_has_none():
    assert arrow(needs_teacher=False).teacher is None


def test_pairs_go_from_the_towers_to_their_teachers():
    teachers = [
        f"towers.teacher_{side}={{builder: openclip, model: RN50, train: none}}"
        for side in ("image", "text")
    ]
    assert arrow(*teachers, takes="pair") == Arrow(
        (IMAGE, TEXT), (Address("teacher_image"), Address("teacher_text"))
    )
    with pytest.raises(
        ValueError,
        match=(
            "teacher: by default teacher_image and teacher_text, but the recipe has no tower"
            " 'teacher_image'"
        ),
    ):
        arrow(takes="pair")


def test_views_are_all_views_of_the_image_tower():
    assert arrow("data.views={b: null}", takes="views").student == (
        IMAGE,
        Address("image", "head", "b"),
    )


@pytest.mark.parametrize(
    ("name", "declared", "modality"),
    [
        ("image", None, "image"),
        ("teacher_text", None, "text"),
        ("second", None, None),
        ("second", "text", "text"),
        ("imagery", None, None),
    ],
)
def test_a_tower_s_name_tells_its_modality(name, declared, modality):
    assert modality_of(name, declared) == modality
