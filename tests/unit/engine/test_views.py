from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.data.views import ImageView, TextView
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.engine.views import build_masks, build_views, view_spec
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import Recipe

VIT = {"builder": "timm", "model": "vit_tiny_patch16_224", "image_size": 32}
SIZES = {"depth": 1, "embed_dim": 32, "num_heads": 2}
PATCH = {"name": "linear", "width": 4, "reads": "tokens", "at": "hidden"}


def prepared(**sections: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Views and masks of a tiny recipe."""
    recipe = Recipe.model_validate(tiny_recipe(**sections))
    towers = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    keys = build_composition(recipe, towers).input_keys()
    views = build_views(recipe, keys, towers)
    return views, build_masks(recipe, views, towers)


def simreg(student: str, teacher: str) -> dict[str, Any]:
    return {"name": "simreg", "student": student, "teacher": teacher}


def test_a_null_view_is_the_main_one_without_copies_and_mask() -> None:
    augment = {"name": "simclr", "copies": 3, "size_px": 16, "mask": {"name": "random"}, "blur": 0}
    recipe = Recipe.model_validate(
        tiny_recipe(data={"augment": augment, "views": {"second": None, "plain": {"name": "none"}}})
    )
    assert recipe.data is not None
    main, second = view_spec(recipe.data, "main"), view_spec(recipe.data, "second")
    assert (main.copies, second.copies, second.mask) == (3, 1, None)
    assert second.keys == main.keys == {"blur": 0} and second.size_px == 16
    assert view_spec(recipe.data, "plain").name == "none"


def test_each_view_has_its_copies_and_its_size() -> None:
    free = {**VIT, "config": {**SIZES, "dynamic_img_size": True}}
    views, masks = prepared(
        towers={
            "image": free,
            "text": {
                "builder": "openclip",
                "config": {"layers": 1, "width": 32, "heads": 2},
            },
        },
        data={
            "augment": {"name": "simclr", "copies": 2},
            "views": {"local": {"name": "simclr", "copies": 3, "size_px": 16}},
        },
        distillers=[
            simreg("image@local", "image@main.1"),
            {"name": "infonce", "student": "text", "teacher": "image@main.1"},
        ],
    )
    assert masks == {} and isinstance(views["text"], TextView)
    main, local = views["image"], views["image@local"]
    assert isinstance(main, ImageView) and isinstance(local, ImageView)
    assert (main.pictures, main.size_px) == (2, (32, 32))
    assert (local.pictures, local.size_px) == (3, (16, 16))


def test_a_size_that_a_tower_does_not_take_is_named() -> None:
    with pytest.raises(
        RecipeError,
        match=r"^data\.views\.local: tower 'image': it does not take pictures of 16 x 16",
    ) as error:
        prepared(
            data={"views": {"local": {"name": "simclr", "size_px": 16}}},
            distillers=[simreg("image@local", "image")],
        )
    assert "\n" not in str(error.value)


def masked(mask: dict[str, Any], masks: str = "replace", **more: Any) -> tuple[Any, Any]:
    patch = {**PATCH, "at": "visible"} if masks == "drop" else PATCH
    return prepared(
        towers={
            "image": {**IMAGE, "heads": {"patch": patch}, "masks": masks},
            "text": TEXT,
            **more,
        },
        data={"augment": {"name": "simclr", "copies": 2, "mask": mask}},
        distillers=[simreg("image.patch@main.1", "image.patch@main.2")],
    )


def test_the_mask_of_a_view_has_the_grid_of_its_towers() -> None:
    _, masks = masked({"name": "random", "share": 0.5, "unit_px": 16})
    assert list(masks) == ["main"] and masks["main"].pictures == 2
    assert (masks["main"].mask.rows, masks["main"].mask.columns) == (2, 2)
    assert masks["main"].mask.num_hidden == 2


@pytest.mark.parametrize(
    ("mask", "masks", "message"),
    [
        (
            {"name": "random", "unit_px": 12},
            "replace",
            "data.augment.mask: unit_px 12 does not fit a grid of 4 x 4 positions of 8 px",
        ),
        ({"name": "block", "hidden": 17}, "replace", "data.augment.mask: hidden: 17 of 16"),
        (
            {"name": "random", "share": 0.99},
            "drop",
            "data.augment.mask: hides 16 of 16 positions, so that there is nothing to see. Hide",
        ),
        (
            {"name": "block", "share": [0.1, 0.5]},
            "replace",
            "data.augment.mask: share hides at most 8 of 16 positions, and the smallest rectangle"
            " has 16, so nothing would be hidden; lower 'smallest'",
        ),
        (
            {"name": "block", "share": [0.1, 0.5], "smallest": 2},
            "drop",
            "towers.image.masks: drop needs as many hidden positions in every picture",
        ),
    ],
)
def test_masks_that_do_not_fit_are_one_line(mask: dict[str, Any], masks: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        masked(mask, masks)
    assert "\n" not in str(error.value)


def test_towers_of_one_mask_share_their_grid() -> None:
    other = {**IMAGE, "config": {**IMAGE["config"], "patch_size": 16}, "heads": {"patch": PATCH}}
    with pytest.raises(
        RecipeError,
        match="tower 'image' has 4 x 4 positions and tower 'image_twin' 2 x 2, and one mask cannot",
    ):
        prepared(
            towers={
                "image": {**IMAGE, "heads": {"patch": PATCH}, "masks": "replace"},
                "image_twin": other,
            },
            data={"augment": {"name": "simclr", "mask": {"name": "random"}}},
            distillers=[simreg("image.patch", "image_twin.patch")],
        )


def test_a_mask_of_towers_that_do_not_look_at_it_is_not_made() -> None:
    _, masks = prepared(data={"augment": {"name": "simclr", "mask": {"name": "random"}}})
    assert masks == {}
