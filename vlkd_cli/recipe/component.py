"""Components of a recipe: their keys checked against their signatures, and the component made from
them."""

from __future__ import annotations

import functools
import math
import types as python_types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlkd_cli import catalog
from vlkd_cli.errors import MissingPackageError, RecipeError
from vlkd_cli.recipe.messages import (
    Path,
    Problem,
    choices_of,
    described_type,
    is_data_source,
    report,
    shown,
)
from vlkd_cli.recipe.optimizers import optimizer_keys, optimizer_names
from vlkd_cli.recipe.params import Key, Signature, signature_of
from vlkd_cli.recipe.types import Positive, Schedule

LARGEST = 2**63 - 1
"""The largest integer of a tensor, a seed or a file size."""


def make(kind: str, name: str, keys: Mapping[str, Any], *supplied: Any) -> Any:
    """The component: its class imported and called with what the engine supplies and the recipe's
    keys in their declared types.

    Raises:
        RecipeError: the name or a key is unknown, or a value is of another type; all problems at
            once.
        MissingPackageError: its optional library is not installed.
    """
    component = catalog.load(kind, name)
    try:
        return component(*supplied, **typed_keys(kind, name, keys))
    except ModuleNotFoundError as error:
        # Some import their library only once they are made.
        if (extra := catalog.missing_extra(kind, name)) is None:
            raise
        raise MissingPackageError(f"{kind} '{name}'", extra) from error


def typed_keys(kind: str, name: str, keys: Mapping[str, object]) -> dict[str, object]:
    """The keys as the constructor wants them: lists as tuples for tuple annotations, `{linear:
    ...}` as a Schedule. The kind may also be "optimizer".

    Raises:
        RecipeError: as `make` does.
    """
    problems = (
        check_optimizer(name, keys, (), ())
        if kind == "optimizer"
        else check_component(kind, name, keys, ())
    )
    if problems:
        raise RecipeError(report({}, problems, f"{kind} '{name}'"))
    signature = optimizer_keys(name) if kind == "optimizer" else signature_of(kind, name).keys
    declared = {key.name: key for key in signature}
    return {key: _adapter(declared[key]).validate_python(value) for key, value in keys.items()}


def check_component(
    kind: str,
    name: object,
    keys: Mapping[str, object],
    path: Path,
    shared: Sequence[Key] = (),
    name_key: str = "name",
) -> list[Problem]:
    """Problems of one component.

    Args:
        keys: everything written at `path` but its name.
        shared: keys that every component at this path takes in addition to its own; they are
            checked by the caller.
        name_key: the key that holds the name: name, builder, reader, suite.
    """
    signature = known_signature(kind, name, (*path, name_key))
    if isinstance(signature, Problem):
        return [signature]
    if not signature.is_read:
        return []
    problems = check_keys(signature.keys, keys, path, f"{kind} '{name}'", shared)
    return problems or list(_check_combinations(signature, keys, path))


def _check_combinations(
    signature: Signature, keys: Mapping[str, object], path: Path
) -> Iterator[Problem]:
    """Keys that have no effect next to another one, and values that another one excludes, by the
    component's own declaration."""
    defaults = {key.name: key.default for key in signature.keys}
    # A subclass may leave out keys of its base.
    values = {**defaults, **keys}

    def is_set(name: str) -> bool:
        return name in defaults and bool(values[name] != defaults[name])

    for decisive, idle in signature.attributes.get("no_effect_with", {}).items():
        if keys.get(decisive) is None:
            continue
        for name in idle:
            if is_set(name):
                yield Problem((*path, name), f"has no effect with '{decisive}'. Leave it out.")
    for decisive, idle_by_value in signature.attributes.get("no_effect_by_key", {}).items():
        value = values.get(decisive)
        # A list is not a value that a component names.
        for name in idle_by_value.get(value, ()) if isinstance(value, Hashable) else ():
            if is_set(name):
                yield Problem(
                    (*path, name), f"has no effect with {decisive}: {_plain(value)}. Leave it out."
                )
    for decisive, excluded_by_value in signature.attributes.get("excludes_by_key", {}).items():
        value = values[decisive]
        for name, excluded in excluded_by_value.get(value, {}).items():
            if values[name] == excluded:
                yield Problem(
                    (*path, name),
                    f"{_plain(excluded)} does not go with {decisive}: {_plain(value)}. Change one"
                    " of them.",
                )


def _plain(value: object) -> str:
    return value if isinstance(value, str) else shown(value)


def known_signature(kind: str, name: object, path: Path) -> Signature | Problem:
    """The component's signature, or what is wrong with its name."""
    if not isinstance(name, str):
        return Problem(
            path,
            f"expected the name of a {kind}, got {shown(name)}. Known:"
            f" {', '.join(catalog.names(kind))}.",
        )
    try:
        return signature_of(kind, name)
    except RecipeError as error:
        return Problem(path, str(error))


def check_third_party(kind: str, name: str) -> None:
    """Make sure that a third party's component is a class of its kind; a catalogue name is fine.

    Raises:
        RecipeError: it is not.
    """
    if ":" in name:
        catalog.check_base(kind, name)


def check_optimizer(
    name: object, keys: Mapping[str, object], path: Path, shared: Sequence[Key]
) -> list[Problem]:
    """Problems of the optimizer's name and its own keys."""
    names = optimizer_names()
    if not isinstance(name, str) or name.lower() not in names:
        guess = catalog.did_you_mean(str(name), names)
        return [
            Problem(
                (*path, "name"),
                f"unknown optimizer {shown(name)}.{guess} Known: {', '.join(names)}.",
            )
        ]
    return check_keys(optimizer_keys(name), keys, path, f"optimizer '{name}'", shared)


def check_keys(
    declared: Sequence[Key],
    keys: Mapping[str, object],
    path: Path,
    owner: str,
    shared: Sequence[Key] = (),
) -> list[Problem]:
    """Unknown keys, missing keys and wrong values, against the declared ones."""
    by_name = {key.name: key for key in declared}
    allowed = [*by_name, *(key.name for key in shared if key.name not in by_name)]
    problems = []
    for name, value in keys.items():
        if name in by_name:
            problems += check_value(by_name[name], value, (*path, name))
        else:
            problems.append(unknown_key(name, allowed, (*path, name), owner))
    for key in declared:
        if key.required and key.name not in keys:
            problems.append(
                Problem(
                    path,
                    f"key '{key.name}' is missing; {owner} needs it:"
                    f" {described_type(key.annotation)}.",
                    False,
                )
            )
    return problems


def unknown_key(name: str, allowed: Sequence[str], path: Path, owner: str) -> Problem:
    accepted = (
        f"Accepted: {', '.join(allowed)}."
        if allowed
        else f"{owner[0].upper()}{owner[1:]} takes no keys."
    )
    return Problem(path, f"unknown key.{catalog.did_you_mean(str(name), allowed)} {accepted}")


def check_value(key: Key, value: object, path: Path) -> list[Problem]:
    """Whether a value is of the type that its key declares."""
    if is_data_source(key.annotation) and isinstance(value, Mapping):
        return check_reader(value, path)
    if (wild := _wild_number(value, path)) is not None:
        return [wild]
    expected = f"expected {described_type(key.annotation)}, got {shown(value)}."
    if isinstance(value, bool) and _is_number(key.annotation):
        return [Problem(path, expected)]
    if isinstance(value, str) and _is_number(key.annotation):
        return [Problem(path, expected.replace("got ", "got the string "))]
    try:
        _adapter(key).validate_python(value)
    except ValidationError as error:
        reasons = [
            str(detail["ctx"]["error"])
            for detail in error.errors()
            if detail["type"] == "value_error"
        ]
        if reasons and isinstance(value, Mapping | list | tuple):
            return [Problem(path, f"{reasons[0]}.")]
        guess = (
            catalog.did_you_mean(value, choices_of(key.annotation))
            if isinstance(value, str)
            else ""
        )
        return [Problem(path, expected + guess)]
    return []


def _wild_number(value: object, path: Path) -> Problem | None:
    """The first number, at any depth, that no setting means and no tensor holds."""
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(path, f"expected a finite number, got {shown(value)}.")
    if isinstance(value, int) and abs(value) > LARGEST:
        return Problem(path, f"expected a number of at most {LARGEST}, got {shown(value)}.")
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found = (_wild_number(item, (*path, key)) for key, item in items)
        return next((problem for problem in found if problem is not None), None)
    return None


def check_reader(entry: object, path: Path, mixed: bool = False) -> list[Problem]:
    """A reader's name with its keys: a suite's `data:`, or (mixed) one of several with its
    sampling weight in the mix."""
    if not isinstance(entry, Mapping):
        return [Problem(path, f"expected keys, got {shown(entry)}. Write e.g. {{reader: shapes}}.")]
    shared = [Key("reader", str), Key("weight", Positive, 1.0) if mixed else Key("name", str, "")]
    own = {key: value for key, value in entry.items() if key not in [key.name for key in shared]}
    several = own.pop("readers", None) if not mixed else None
    problems = (
        check_value(shared[1], entry[shared[1].name], (*path, shared[1].name))
        if shared[1].name in entry
        else []
    )
    if isinstance(several, list):
        for number, part in enumerate(several):
            problems += check_reader(part, (*path, "readers", number), mixed=True)
        return problems + check_keys(
            (), own, path, "a mix of readers", [Key("readers", list), *shared[1:]]
        )
    if "reader" not in entry and "dataset" in entry and not mixed:
        return problems + _check_named_set(own, path)
    if "reader" not in entry:
        or_set = "" if mixed else ", or name a data set below --data ROOT with 'dataset'"
        return [
            *problems,
            Problem(
                path,
                f"key 'reader' is missing. Known: {', '.join(catalog.names('reader'))}{or_set}.",
                False,
            ),
        ]
    return problems + check_component(
        "reader", entry["reader"], own, path, shared, name_key="reader"
    )


def _check_named_set(own: Mapping[str, object], path: Path) -> list[Problem]:
    """`{dataset: NAME, split: ...}`: which reader reads it is found out below the data root, so its
    keys are those of any reader of such sets."""
    declared = {
        key.name: key._replace(default=None)
        for reader in ("classification", "elevater", "clip_benchmark")
        for key in signature_of("reader", reader).keys
        if key.name not in ("path", "root")
    }
    return check_keys([*declared.values()], own, path, "a data set", [Key("name", str, "")])


def _adapter(key: Key) -> TypeAdapter[Any]:
    try:
        return _adapter_of(key.annotation)
    except TypeError:
        # Annotated with something that has no hash.
        return TypeAdapter(key.annotation)


@functools.cache
def _adapter_of(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _is_number(annotation: object) -> bool:
    """Whether only numbers (or schedules of them, or null) are meant, so that text and truth values
    are mistakes."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _is_number(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, python_types.UnionType):
        return all(_is_number(part) or part is type(None) for part in typing.get_args(annotation))
    return annotation in (int, float, Schedule)
