"""What the keys of a reader may be that name columns or members of the data, judged without opening
any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

COLUMN_KEYS = ("image", "caption", "caption_key", "target")


def names_problems(keys: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Keys whose list names nothing, or one thing twice, each with what is wrong."""
    for key in COLUMN_KEYS:
        names = keys.get(key)
        if not isinstance(names, list):
            continue
        if not names:
            yield key, "is empty. Name what it is read from, or write null."
        twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
        if twice is not None:
            yield key, f"names '{twice}' twice. Leave one of them out."
