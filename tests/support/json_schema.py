"""As much of JSON Schema as the recipes' schema uses; enough to say whether a value fits it."""

from __future__ import annotations

import re
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether a plain value is one that the schema allows."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema and not any(fits(value, one, root) for one in schema["anyOf"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "type" in schema:
        wanted = TYPES[schema["type"]]
        if not isinstance(value, wanted) or (
            isinstance(value, bool) and schema["type"] in ("integer", "number")
        ):
            return False
    if isinstance(value, dict):
        return _object_fits(value, schema, root)
    if isinstance(value, list):
        heads = schema.get("prefixItems", [])
        rest = schema.get("items", True)
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        pairs = [
            (item, heads[number] if number < len(heads) else rest)
            for number, item in enumerate(value)
        ]
        return all(one is True or fits(item, one, root) for item, one in pairs)
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value > schema.get("exclusiveMinimum", float("-inf")) and value >= schema.get(
            "minimum", float("-inf")
        )
    return True


def _object_fits(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    if any(name not in value for name in schema.get("required", [])) or len(value) < schema.get(
        "minProperties", 0
    ):
        return False
    for name, item in value.items():
        one = properties.get(name, others)
        if one is False or (one is not True and not fits(item, one, root)):
            return False
    return True
