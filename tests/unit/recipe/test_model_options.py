"""What can be set on a tower of a model by name."""

from __future__ import annotations

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.key_rows import default_text
from vlkd_cli.recipe.model_options import list_model_options
from vlkd_cli.recipe.named_models import named_models
from vlkd_cli.recipe.params import signature_of


def options(name: str) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in list_model_options(name)["options"]:
        found.setdefault(row["key"], []).append(row)
    return found


def test_the_builders_keys_are_options_whose_defaults_come_from_the_name():
    message = options("resnet-base")
    keys = [key.name for key in signature_of("builder", "torchvision").keys]
    assert list(message)[: len(keys)] == keys
    assert message["model"][0]["default"] == "'resnet50'"
    assert message["pretrained"][0]["default"] == "true"


def test_poolers_come_with_their_own_defaults():
    message = options("resnet-base")
    for key in signature_of("pooler", "gem").keys:
        assert message[f"pooler.{key.name}"][0]["default"] == default_text(key)


def test_poolers_and_keys_are_those_of_the_modality():
    image, text = options("clip-base-en")["pooler"]
    assert (image["towers"], text["towers"]) == (["image"], ["text"])
    assert "cls_mean" in image["type"] and "eot" not in image["type"]
    assert "eot" in text["type"] and "cls_mean" not in text["type"]
    assert "cls, " in image["type"] and "cls, " in text["type"]
    assert "cls" not in options("resnet-base")["pooler"][0]["type"]
    assert "tokenizer" in options("bert-base-en") and "image_size" not in options("bert-base-en")
    assert "data.augment" in options("resnet-base") and "data.augment" not in options(
        "bert-base-en"
    )


def test_augmentations_are_those_of_the_modality_with_the_keys_of_the_usual_one():
    image, mesh = options("resnet-base"), options("pointnet-base")
    assert "simclr" in image["data.augment"][0]["type"]
    assert "points" not in image["data.augment"][0]["type"]
    assert mesh["data.augment"][0]["type"].startswith("one of points, none, ")
    assert (image["data.augment"][0]["default"], mesh["data.augment"][0]["default"]) == (
        "standard",
        "points",
    )
    assert "data.augment.scale" in image and mesh["data.augment.jitter"][0]["default"] == "0.01"
    assert "images" not in mesh["data.augment"][0]["meaning"]


def test_points_have_no_class_token():
    for name in ("pointnet-base", "pointnet:ssg"):
        assert "cls" not in options(name)["pooler"][0]["type"]


def test_gem_documents_negative_tokens_for_transformers_only():
    assert "counts as eps" in options("bert-base-en")["pooler.eps"][0]["meaning"]
    assert "counts as eps" not in options("resnet-base")["pooler.eps"][0]["meaning"]


def test_a_scorer_has_its_own_keys_and_those_of_its_place():
    message = options("crossencoder-base-en")
    assert list(message) == ["model", "max_length", "batch_size", "weight", "standardize"]
    assert message["model"][0]["default"] == "'cross-encoder/ms-marco-MiniLM-L6-v2'"
    assert list_model_options("crossencoder-base-en")["scorer"]["name"] == "cross_encoder"


def test_a_builders_model_has_options_too_and_every_name_has_a_page():
    assert list_model_options("timm:resnet10t")["towers"] == {
        "image": {"builder": "timm", "model": "resnet10t", "pretrained": True}
    }
    for name in named_models():
        assert list_model_options(name)["name"] == name
    with pytest.raises(RecipeError, match=r"no model is called 'resnet'\."):
        list_model_options("resnet")
