"""The first difference between two trees of plain values."""

from __future__ import annotations


def first_difference(
    before: object, now: object, key: str = ""
) -> tuple[str, object, object] | None:
    """Key path and both values of the first difference between two trees of plain values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            found = first_difference(
                before.get(name), now.get(name), f"{key}.{name}" if key else str(name)
            )
            if found is not None:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return next(
            (
                found
                for n, (a, b) in pairs
                if (found := first_difference(a, b, f"{key}[{n}]")) is not None
            ),
            None,
        )
    return None if before == now else (key, before, now)
