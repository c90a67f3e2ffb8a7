"""Problems of a recipe and how they read: one line each, from the user's file, line, key and value
to what to do."""

from __future__ import annotations

import math
import re
import types as python_types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vlkd_cli.recipe.types import ReadsData, Schedule

Path = tuple[str | int, ...]
"""The path of a value in a recipe: ("distillers", 0, "weight")."""

_WORDS: dict[object, str] = {
    int: "an integer",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
    Any: "anything",
}


class Written(str):
    """A text in place of what the user wrote, which messages show."""

    written: str

    def __new__(cls, text: str, written: str) -> Self:
        made = super().__new__(cls, text)
        made.written = written
        return made

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (str(self), self.written)


class Resolved(Written):
    """A text in which environment variables were resolved; files show what was written, too, for
    the value may be a secret."""


class Problem(NamedTuple):
    """Something wrong at a path of the recipe.

    `about_value` is false if the value itself is fine and something is missing.
    """

    path: Path
    text: str
    about_value: bool = True


def written(path: Path) -> str:
    """A path as a user would write it: `distillers[0].weight`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def shown(value: Any) -> str:
    """A value in a message, short enough for one line."""
    value = value.written if isinstance(value, Resolved) else value
    text = " ".join((f"'{value}'" if isinstance(value, str) else _flow(value)).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def described_type(annotation: object) -> str:
    """What a key takes, in words: "a number above 0", "'a' or 'b'", "a list of text"."""
    if is_data_source(annotation):
        return "the name of a data set, a reader with its keys, or null"
    annotation, bounds = _unwrapped(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Schedule:
        return "a schedule ({linear: [first, last]}, or cosine or jump, with epochs or steps)"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        keys = [field.alias or name for name, field in annotation.model_fields.items()]
        return f"a mapping with {', '.join(keys)}" if keys else "a mapping"
    if origin is Literal:
        return _either([shown(argument) for argument in arguments])
    if origin in (typing.Union, python_types.UnionType):
        return _either([described_type(argument) for argument in arguments])
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return (
            f"a list of {len(arguments)}:"
            f" {', '.join(described_type(argument) for argument in arguments)}"
        )
    if origin in (list, tuple, set, frozenset, Sequence) or (
        isinstance(origin, type) and issubclass(origin, Sequence)
    ):
        return f"a list of {_plural(described_type(arguments[0]))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return (
            f"a mapping of names to {_plural(described_type(arguments[1]))}"
            if len(arguments) == 2
            else "a mapping"
        )
    name = getattr(annotation, "__name__", "a value")
    word = _WORDS.get(annotation) or ("a path" if name == "Path" else name)
    return f"{word} {bounds}" if bounds else word


def is_data_source(annotation: object) -> bool:
    """Whether a key names a source of data."""
    return typing.get_origin(annotation) is typing.Annotated and any(
        isinstance(part, ReadsData) for part in typing.get_args(annotation)
    )


def choices_of(annotation: object) -> list[str]:
    """The texts that a key accepts where it accepts only some; for did-you-mean."""
    annotation, _ = _unwrapped(annotation)
    if typing.get_origin(annotation) is Literal:
        return [argument for argument in typing.get_args(annotation) if isinstance(argument, str)]
    if typing.get_origin(annotation) in (typing.Union, python_types.UnionType):
        return [
            choice for argument in typing.get_args(annotation) for choice in choices_of(argument)
        ]
    return []


def report(origins: Mapping[Path, str], problems: Sequence[Problem], default_origin: str) -> str:
    """All problems in the order of the file, one line each: `recipes/my.yaml:12:
    distillers[0].temprature: unknown key. ...`."""
    lines = []
    for problem in problems:
        origin = origin_of(origins, problem.path, default_origin)
        key = written(problem.path)
        # `--set optimizer.lrr=1: optimizer.lrr: ...` would repeat the key, as would `--seeds a`.
        repeats = key == origin or origin.startswith((f"--set {key}=", f"--{key} "))
        lines.append(
            (
                origin,
                (
                    f"{origin}: {problem.text}"
                    if repeats or not key
                    else f"{origin}: {key}: {problem.text}"
                ),
            )
        )
    return "\n".join(
        line for _, line in sorted(dict.fromkeys(lines), key=lambda pair: _order(pair[0]))
    )


def origin_of(origins: Mapping[Path, str], path: Path, default: str) -> str:
    """`file:line` (or `--set key=value`) of a value, or of the nearest thing around it that is in
    the file."""
    while path:
        if path in origins:
            return origins[path]
        path = path[:-1]
    return origins.get((), default)


_BEGINNING = re.compile(
    r"(?:(?P<path>(?:towers|distillers|data|train|optimizer|schedule|evals|reports|synthesis)"
    r"(?:\.\w+|\[\d+\])*)|tower '(?P<tower>\w+)'): "
)


def located(text: str, origins: Mapping[Path, str]) -> str:
    """A problem that only building found, with `file:line` before it where it begins with a key of
    the recipe (`data.augment.mask: ...`) or the name of a tower (`tower 'image': ...`)."""
    found = _BEGINNING.match(text)
    if found is None or not origins:
        return text
    parts = re.findall(r"\w+", found["path"] or f"towers.{found['tower']}")
    path = tuple(int(part) if part.isdigit() else part for part in parts)
    return f"{origin_of(origins, path, 'the recipe')}: {text}"


def _order(origin: str) -> tuple[int, int]:
    line = origin.rpartition(":")[2]
    return (0, int(line)) if line.isdigit() else (1, 0)


def _unwrapped(annotation: object) -> tuple[object, str]:
    """The bare type of an Annotated, and its bounds in words."""
    bounds = []
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        for item in metadata:
            for part in item.metadata if isinstance(item, FieldInfo) else [item]:
                bounds.append(_bound(part))
    return annotation, " and ".join(bound for bound in bounds if bound)


def _bound(part: object) -> str:
    for kind, word in ((annotated_types.Gt, "above"), (annotated_types.Lt, "below")):
        if isinstance(part, kind):
            return f"{word} {getattr(part, kind.__name__.lower())}"
    if isinstance(part, annotated_types.Ge):
        return f"of at least {part.ge}"
    if isinstance(part, annotated_types.Le):
        return f"of at most {part.le}"
    return ""


def _flow(value: object) -> str:
    """A value as YAML's flow style writes it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, Resolved):
        return value.written
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return (
        {True: "true", False: "false", None: "null"}[value]
        if value is None or isinstance(value, bool)
        else str(value)
    )


def _either(parts: list[str]) -> str:
    parts = list(dict.fromkeys(parts))
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _plural(text: str) -> str:
    for singular, plural in (
        ("an integer", "integers"),
        ("a number", "numbers"),
        ("a mapping", "mappings"),
        ("a list", "lists"),
    ):
        if text.startswith(singular):
            return plural + text.removeprefix(singular)
    return text
