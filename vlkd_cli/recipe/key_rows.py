"""Keys as rows of a table, for `vlkd show` and the pages that are written from signatures."""

from __future__ import annotations

from collections.abc import Sequence

from vlkd_cli.recipe.messages import described_type, shown
from vlkd_cli.recipe.params import Key, Source


def key_rows(keys: Sequence[Key]) -> list[tuple[str, str, str, str]]:
    """(key, type in words, default, meaning) of each key."""
    return [
        (key.name, described_type(key.annotation), default_text(key), key.description)
        for key in keys
    ]


def default_text(key: Key) -> str:
    """A key's default as a recipe would write it."""
    if key.required:
        return "required"
    if isinstance(key.default, float):
        return f"{key.default:.6g}"
    if isinstance(key.default, Source):
        return key.default.text
    if hasattr(key.default, "model_dump"):
        return shown(key.default.model_dump(exclude_none=True))
    return shown(key.default)
