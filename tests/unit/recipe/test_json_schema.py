"""The schema for editors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.json_schema import fits
from tests.support.recipes import SMALL
from vlkd_cli import catalog
from vlkd_cli.recipe.json_schema import recipe_schema
from vlkd_cli.recipe.overrides import apply_overrides
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.shipped import shipped_recipes
from vlkd_cli.recipe.yaml_file import read_document


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(json.dumps(recipe_schema()))


def alternatives(schema: dict[str, Any], name_key: str) -> dict[str, dict[str, Any]]:
    return {
        one["properties"][name_key]["const"]: one
        for one in schema["anyOf"]
        if "const" in one.get("properties", {}).get(name_key, {})
    }


ARROW = ("student", "teacher", "negatives", "widths", "width_weights")
"""What any distiller may compare, and at which widths."""


def test_every_component_is_an_alternative_with_its_own_keys(schema):
    distillers = alternatives(schema["properties"]["distillers"]["items"], "name")
    assert list(distillers) == catalog.names("distiller")
    for name, one in distillers.items():
        own = set(signature_of("distiller", name).key_names())
        assert own | {*ARROW, "name", "weight", "lr"} == set(one["properties"])
        assert one["additionalProperties"] is False


def test_towers_know_their_builders_heads_and_required_keys(schema):
    towers = alternatives(schema["properties"]["towers"]["additionalProperties"], "builder")
    assert list(towers) == catalog.names("builder")
    assert towers["torchvision"]["required"] == ["builder", "model"]
    assert "model" in towers["torchvision"]["properties"]
    heads = alternatives(towers["torchvision"]["properties"]["head"]["anyOf"][0], "name")
    assert list(heads) == catalog.names("head")


def test_sections_carry_types_defaults_and_descriptions(schema):
    batch_size = schema["properties"]["train"]["properties"]["batch_size"]
    assert (batch_size["type"], batch_size["default"], batch_size["exclusiveMinimum"]) == (
        "integer",
        64,
        0,
    )
    assert batch_size["description"] == "pairs per process and step"
    assert schema["properties"]["schedule"]["properties"]["name"]["enum"] == [
        "cosine",
        "linear",
        "constant",
        "steps",
        "wsd",
        "rsqrt",
    ]


def test_every_reference_leads_somewhere(schema):
    found = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                found.append(value["$ref"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(schema)
    assert found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= set(schema["$defs"])


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_fit_the_schema(schema, name):
    value = read_document(shipped_recipes()[name].read_text(encoding="utf-8"), name).value
    assert fits(value, schema, schema)


@pytest.mark.parametrize(
    ("option", "right"),
    [
        ("train.epochs=2", True),
        ("train.epochs=0", False),
        ("train.epoch=2", False),
        ("distillers[0].weight={linear: [0, 1]}", True),
        ("distillers[0].weight={linear: [0]}", False),
        ("distillers[0].logit_scal=1", False),
        ("distillers[0]={name: my.module:Mine, anything: 1}", True),
        ("towers.image.head={name: linear, width: 3}", True),
        ("towers.image.head={name: liner, width: 3}", False),
        ("towers.image.moddel=x", False),
        ("towers.ema={follows: image, momentum: {cosine: [0.9, 1]}}", True),
        ("optimizer={lr: 0.1, betas: [0.9, 0.95]}", True),
        ("optimizer={name: sgd, betas: [0.9, 0.95]}", False),
        ("reports=[csv, {name: wandb, project: x}]", True),
        ("data={readers: [{reader: shapes, weight: 2}, {reader: shapes}]}", True),
    ],
)
def test_the_schema_accepts_right_recipes_and_refuses_wrong_ones(schema, option, right):
    document = read_document(SMALL, "r.yaml")
    assert apply_overrides(document, [option]) == []
    assert fits(document.value, schema, schema) is right


@pytest.mark.parametrize(
    ("tower", "right"),
    [("resnet-base", True), ({"like": "resnet-base", "image_size": 96}, True), ("resnet", False)],
)
def test_towers_may_be_the_names_of_models(schema, tower, right):
    assert bool(fits({"towers": {"image": tower}}, schema, schema)) is right
