"""One result file as plain values; a damaged one counts as none."""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import TypedDict, get_origin, get_type_hints

from vlkd_cli.data.files.texts import read_json


class ResultJson(TypedDict, total=False):
    """A result file; see `evaluation.results.Result`. Files of earlier versions lack some keys."""

    name: str
    suite: str
    dataset: str
    split: str
    protocol: str
    metrics: dict[str, float | None]
    primary_metric: str
    chance: dict[str, float]
    num_items: int
    num_skipped: int
    num_classes: int | None
    model: dict[str, str | int | bool | None]
    towers: dict[str, dict[str, str]]
    precision: str
    hashes: dict[str, str]
    data: dict[str, object]
    settings: dict[str, object]
    libraries: dict[str, str]
    details: dict[str, object]
    version: str
    key: str
    seconds: int | float | None
    device: str
    file: str


_KINDS: dict[str, type | UnionType] = {
    key: get_origin(hint) if get_origin(hint) is dict else hint
    for key, hint in get_type_hints(ResultJson).items()
}


def read_result(path: Path) -> ResultJson | None:
    """A result file; None where it cannot be read, or a value is not of its type, which pages and
    tables rely on."""
    try:
        content: ResultJson | None = read_json(path)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or "metrics" not in content:
        return None
    plain: dict[str, object] = {**content}
    fits = all(isinstance(plain.get(key), kind) for key, kind in _KINDS.items() if key in plain)
    numbers = [*content["metrics"].values(), *content.get("chance", {}).values()] if fits else []
    return content if fits and all(map(_is_number_or_none, numbers)) else None


def _is_number_or_none(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return value is None
    return isinstance(value, float) or abs(value) < 2**63
