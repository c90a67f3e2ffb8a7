"""The JSON Schema of recipes, for completion and checking in editors. Every component's keys come
from its signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from vlkd_cli import catalog
from vlkd_cli.recipe import schema
from vlkd_cli.recipe.named_models import named_models
from vlkd_cli.recipe.optimizers import optimizer_keys, optimizer_names
from vlkd_cli.recipe.params import Key, Source, signature_of
from vlkd_cli.recipe.shape import PLACES, TOWER_COMPONENTS, section_keys

Schema = dict[str, Any]

# Kinds whose name may be left out.
_DEFAULTS = {"prompt": schema.PromptSpec.model_fields["name"].default}


def recipe_schema() -> Schema:
    """JSON Schema (2020-12) of a whole recipe; each component is one alternative with its own
    closed set of keys."""
    definitions: dict[str, Schema] = {}
    components = {kind: _component(kind, definitions) for kind in catalog.CATALOG}
    reader = _choice(
        "reader", "reader", (Key("weight", float, 1.0, "sampling weight"),), definitions
    )
    heads = {"type": "object", "additionalProperties": components["head"]}
    tower_keys = _replaced(
        schema.TowerSpec,
        {"heads": heads} | {kind: components[kind] for kind in TOWER_COMPONENTS},
        definitions,
    )
    data_keys = _replaced(
        schema.DataSpec,
        {
            "augment": components["augment"],
            "views": {
                "type": "object",
                "additionalProperties": {"anyOf": [components["augment"], {"type": "null"}]},
            },
            "readers": {"type": "array", "items": reader},
        },
        definitions,
    )
    properties: dict[str, Schema] = {
        "towers": _towers(tower_keys, definitions),
        "distillers": {
            "type": "array",
            "items": {
                "anyOf": _alternatives(
                    "distiller",
                    "name",
                    _replaced(schema.DistillerSpec, {}, definitions),
                    definitions,
                )
            },
        },
        "data": {
            "anyOf": [
                *_alternatives("reader", "reader", data_keys, definitions),
                _closed(data_keys, forbidden="reader", required=["readers"]),
            ]
        },
        "train": _closed(_replaced(schema.TrainSpec, {}, definitions)),
        "optimizer": _optimizer(definitions),
        "schedule": _closed(_replaced(schema.ScheduleSpec, {}, definitions)),
        "evals": {
            "type": "array",
            "items": {
                "anyOf": _alternatives(
                    "suite", "suite", _replaced(schema.EvalSpec, {}, definitions), definitions
                )
            },
        },
        "synthesis": _synthesis(reader, definitions),
        "reports": {
            "type": "array",
            "items": {"anyOf": [{"enum": catalog.names("sink")}, components["sink"]]},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vlkd recipe",
        "type": "object",
        "properties": properties,
        "required": ["towers"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _towers(keys: dict[str, Schema], definitions: dict[str, Schema]) -> Schema:
    """Towers by name: of a builder, of a run or another tower, or like a model by name."""
    like = {"like": keys["like"]}
    others = {name: value for name, value in keys.items() if name != "like"}
    return {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {
            "anyOf": [
                *_alternatives("builder", "builder", others, definitions),
                _closed(others, forbidden="builder"),
                {"enum": list(named_models())},
                # Its further keys are those of the model's builder.
                {"type": "object", "properties": others | like, "required": ["like"]},
            ]
        },
    }


def _synthesis(reader: Schema, definitions: dict[str, Schema]) -> Schema:
    own_keys = _replaced(schema.ScorerSpec, {}, definitions)
    scorers: Schema = {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                *_alternatives("scorer", "name", own_keys, definitions),
                {"enum": [*catalog.names("scorer"), *_scorers_by_name()]},
                {
                    "type": "object",
                    "properties": own_keys | {"like": {"enum": _scorers_by_name()}},
                    "required": ["like"],
                },
            ]
        },
    }
    keys = _replaced(schema.SynthesisSpec, {"data": reader, "scorers": scorers}, definitions)
    return _closed(keys, required=["data", "miners", "scorers"])


def _scorers_by_name() -> list[str]:
    return [name for name, model in named_models().items() if model.scorer]


def _component(kind: str, definitions: dict[str, Schema]) -> Schema:
    """A component of a kind, with the keys that its position in the recipe adds."""
    own_keys = _replaced(
        PLACES.get(kind, schema.Component),
        {"mask": _component("mask", definitions)} if kind == "augment" else {},
        definitions,
    )
    return {"anyOf": _alternatives(kind, "name", own_keys, definitions)}


def _choice(
    kind: str, name_key: str, shared: Sequence[Key], definitions: dict[str, Schema]
) -> Schema:
    return {
        "anyOf": _alternatives(
            kind, name_key, {key.name: _key(key, definitions) for key in shared}, definitions
        )
    }


def _alternatives(
    kind: str, name_key: str, shared: dict[str, Schema], definitions: dict[str, Schema]
) -> list[Schema]:
    """One closed object per component, and an open one for third parties' `module:Class`."""
    found = []
    for name, entry in catalog.CATALOG[kind].items():
        keys = signature_of(kind, name).keys
        properties = shared | {key.name: _key(key, definitions) for key in keys}
        properties[name_key] = {"const": name, "description": entry.summary}
        named = [] if name == _DEFAULTS.get(kind) else [name_key]
        found.append(
            _closed(properties, required=[*named, *(key.name for key in keys if key.required)])
        )
    third_party = {
        name_key: {
            "type": "string",
            "pattern": "^[\\w.]+:\\w+$",
            "description": f"a {kind} of another package: module:Class",
        }
    }
    return [*found, {"type": "object", "properties": shared | third_party, "required": [name_key]}]


def _optimizer(definitions: dict[str, Schema]) -> Schema:
    shared = _replaced(schema.OptimizerSpec, {}, definitions)
    group = _replaced(schema.GroupSpec, {}, definitions)
    found = []
    for name in optimizer_names():
        own = {key.name: _key(key, definitions) for key in optimizer_keys(name)}
        groups = {"type": "array", "items": _closed(group | own, required=["match"])}
        properties = shared | own | {"groups": groups}
        # Without a name it is adamw.
        found.append(
            _closed(
                properties | {"name": {"const": name}}, required=[] if name == "adamw" else ["name"]
            )
        )
    return {"anyOf": found}


def _replaced(
    model: type[Any], replacements: dict[str, Schema], definitions: dict[str, Schema]
) -> dict[str, Schema]:
    """The properties of a section; those in `replacements` are described by components instead of
    by their declared type."""
    properties = {}
    for key in section_keys(model):
        if key.name in replacements:
            wide = {"anyOf": [replacements[key.name], {"type": "null"}]}
            properties[key.name] = wide | (
                {"description": key.description} if key.description else {}
            )
        else:
            properties[key.name] = _key(key, definitions)
    return properties


def _closed(
    properties: dict[str, Schema], *, required: Sequence[str] = (), forbidden: str | None = None
) -> Schema:
    allowed = {name: value for name, value in properties.items() if name != forbidden}
    return {"type": "object", "properties": allowed, "additionalProperties": False} | (
        {"required": list(required)} if required else {}
    )


def _key(key: Key, definitions: dict[str, Schema]) -> Schema:
    found: Schema = TypeAdapter(key.annotation).json_schema(ref_template="#/$defs/{model}")
    definitions |= found.pop("$defs", {})
    if key.description:
        found["description"] = key.description
    if (
        not key.required
        and not isinstance(key.default, Source)
        and isinstance(key.default, str | int | float | bool | None)
    ):
        found["default"] = key.default
    return found
