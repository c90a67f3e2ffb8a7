"""Files of right and wrong captions: SugarCrepe, ARO, Winoground, and plain lists."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import (
    kind_of,
    parse_json,
    read_file,
    read_text,
    split_lines,
    text_of,
)
from vlkd_cli.errors import DataError

Layout = Literal["sugar_crepe", "vg_relation", "vg_attribution", "order", "winoground", "plain"]
Box = tuple[int, int, int, int]

WINOGROUND_FILE = "examples.jsonl"

_KEYS: dict[Layout, tuple[str, ...]] = {
    "sugar_crepe": ("filename", "caption", "negative_caption"),
    "winoground": ("image_0", "image_1", "caption_0", "caption_1"),
    "vg_relation": ("image_path", "true_caption", "false_caption", "relation_name"),
    "vg_attribution": ("image_path", "true_caption", "false_caption", "attributes"),
    "order": ("caption_options",),
    "plain": ("image", "right", "wrong"),
}
"""What the items of a layout have, and by which it is recognized."""


class Choice(NamedTuple):
    """An image with captions that describe it and captions that do not."""

    image: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    group: str = ""
    box: Box | None = None
    """Left, upper, right and lower edge of the part that is shown, in pixels."""


class ChoiceFile(NamedTuple):
    """The items of a file. Those of Winoground come in pairs, each with the other's caption as
    its wrong one."""

    layout: Layout
    items: list[Choice]


def read_choices(path: Path) -> ChoiceFile:
    """The items of a .json or .jsonl file.

    Raises:
        DataError: the file cannot be read, is of no known layout, or an item of it is damaged; the
            message names file and item.
    """
    records = list(_records(path))
    if not records:
        raise DataError(f"{path}: holds no items.")
    first = records[0]
    layout = next((name for name, keys in _KEYS.items() if keys_in(keys, first.values)), None)
    if layout is None:
        known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _KEYS.items())
        raise DataError(
            f"{first.where} has the keys {', '.join(map(str, first.values)) or 'none'}, and no"
            f" layout of right and wrong captions does.{_meant(first.values)} Known: {known}."
        )
    items = [item for record in records for item in _ITEMS[layout](record)]
    return ChoiceFile(layout, items)


def keys_in(keys: tuple[str, ...], values: Mapping[str, object]) -> bool:
    """Whether all keys are there."""
    return set(keys) <= values.keys()


def _meant(values: Mapping[str, object]) -> str:
    """The misspelled key of the layout that most of the keys are of."""
    keys = max(_KEYS.values(), key=lambda own: len(set(own) & values.keys()) / len(own))
    missing = [key for key in keys if key not in values]
    hints = (did_you_mean(str(key), missing) for key in values if key not in keys)
    return next((hint for hint in hints if hint), "")


class _Record:
    """An object of the file; what is missing or of another type is named by its position."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise DataError(f"{where} is {kind_of(values)}, not an object.")
        self.values, self.where = values, where

    def get(self, key: str) -> Any:
        if key not in self.values:
            raise DataError(f"{self.where} has no '{key}', as the items before it do.")
        return self.values[key]

    def text(self, key: str) -> str:
        return _text(self.get(key), f"{self.where}.{key}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A text or a list of them; at least one."""
        value = self.get(key)
        if isinstance(value, str):
            return (self.text(key),)
        if not isinstance(value, list) or not value:
            what = "empty" if value == [] else kind_of(value)
            raise DataError(f"{self.where}.{key} is {what}; expected a list of captions.")
        return tuple(_text(text, f"{self.where}.{key}[{n}]") for n, text in enumerate(value))

    def box(self) -> Box:
        sides = []
        for key in ("bbox_x", "bbox_y", "bbox_w", "bbox_h"):
            value = self.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"{self.where}.{key} is {kind_of(value)}, not a number of pixels.")
            if not math.isfinite(value):
                raise DataError(f"{self.where}.{key} is {value}, not a number of pixels.")
            sides.append(round(value))
        left, upper, width, height = sides
        if width < 1 or height < 1:
            raise DataError(f"{self.where}: its box of {width} x {height} pixels is empty.")
        return left, upper, left + width, upper + height


def _records(path: Path) -> Iterator[_Record]:
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(split_lines(read_text(path)), start=1):
            if line.strip():
                yield _Record(_parsed(line, f"{path}:{number}"), f"{path}:{number}")
        return
    try:
        content = _parsed(read_file(path), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if isinstance(content, list):
        named = [(f"[{number}]", values) for number, values in enumerate(content)]
    elif isinstance(content, dict):
        named = [(f"'{key}'", values) for key, values in content.items()]
    else:
        raise DataError(f"{path}: is {kind_of(content)}, not a list or an object of items.")
    for name, values in named:
        yield _Record(values, f"{path}: item {name}")


def _parsed(content: bytes | str, where: str) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise DataError(f"{where}: is not valid JSON ({error}). Fetch the file again.") from None


def _text(value: object, where: str) -> str:
    try:
        text = text_of(value)
    except ValueError as error:
        raise DataError(f"{where} is {error}.") from None
    if not text:
        raise DataError(f"{where} is empty.")
    return text


def _sugar_crepe(record: _Record) -> list[Choice]:
    right, wrong = record.text("caption"), record.text("negative_caption")
    return [Choice(record.text("filename"), (right,), (wrong,))]


def _vg_relation(record: _Record) -> list[Choice]:
    return [_visual_genome(record, record.text("relation_name"))]


def _vg_attribution(record: _Record) -> list[Choice]:
    return [_visual_genome(record, "_".join(record.texts("attributes")))]


def _visual_genome(record: _Record, group: str) -> Choice:
    right, wrong = record.text("true_caption"), record.text("false_caption")
    return Choice(record.text("image_path"), (right,), (wrong,), group, record.box())


def _order(record: _Record) -> list[Choice]:
    captions = record.texts("caption_options")
    if len(captions) < 2:
        raise DataError(
            f"{record.where}.caption_options has one caption; the first is the right"
            " one, and wrong ones follow it."
        )
    image = "image_path" if "image_path" in record.values else "image"
    return [Choice(record.text(image), captions[:1], captions[1:])]


def _winoground(record: _Record) -> list[Choice]:
    captions = [record.text("caption_0"), record.text("caption_1")]
    images = [record.text("image_0"), record.text("image_1")]
    return [
        Choice(name if os.path.splitext(name)[1] else f"{name}.png", (own,), (other,))
        for name, own, other in zip(images, captions, captions[::-1], strict=True)
    ]


def _plain(record: _Record) -> list[Choice]:
    value = record.values.get("group")
    if isinstance(value, list | dict):
        raise DataError(f"{record.where}.group is {kind_of(value)}, not a name or a number.")
    group = "" if value is None else _text(str(value), f"{record.where}.group")
    return [Choice(record.text("image"), record.texts("right"), record.texts("wrong"), group)]


_ITEMS: dict[Layout, Callable[[_Record], list[Choice]]] = {
    "sugar_crepe": _sugar_crepe,
    "vg_relation": _vg_relation,
    "vg_attribution": _vg_attribution,
    "order": _order,
    "winoground": _winoground,
    "plain": _plain,
}
