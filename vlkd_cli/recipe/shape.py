"""Whether a recipe has the right sections, keys and types; every problem at once. What they mean
together is `checks.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel

from vlkd_cli.catalog import closest
from vlkd_cli.recipe.component import (
    check_component,
    check_keys,
    check_optimizer,
    check_reader,
    check_value,
    known_signature,
    unknown_key,
)
from vlkd_cli.recipe.messages import Path, Problem, shown, written
from vlkd_cli.recipe.params import REQUIRED, Key
from vlkd_cli.recipe.schema import (
    Component,
    DataSpec,
    DistillerSpec,
    EvalSpec,
    GroupSpec,
    HeadSpec,
    OptimizerSpec,
    PromptSpec,
    Recipe,
    ScheduleSpec,
    ScorerSpec,
    SynthesisSpec,
    TowerSpec,
    TrainSpec,
    ViewSpec,
)

RUN_TRUST = Key("trust", bool, False, "let the recipe of the run name components of other packages")
"""The one key of a tower out of a run in addition to the section's own."""

Check = Callable[[Any, Path], list[Problem]]

# Where a tower can come from.
_SOURCES = ("builder", "run", "follows")

# Keys of a tower that choose a component of a kind.
TOWER_COMPONENTS = ("pooler", "head", "adapter", "prompt")

# Components whose section declares keys in addition to their own.
PLACES: dict[str, type[Component]] = {"prompt": PromptSpec, "head": HeadSpec, "augment": ViewSpec}


# The keys that choose a component; elsewhere it is `name`.
_NAMING: dict[type[BaseModel], str] = {
    TowerSpec: "builder",
    DataSpec: "reader",
    EvalSpec: "suite",
}


def section_keys(model: type[BaseModel]) -> list[Key]:
    """The keys that a section of the schema declares, as a recipe writes them."""
    keys = []
    for name, field in model.model_fields.items():
        annotation: Any = field.annotation
        for extra in field.metadata:
            annotation = Annotated[annotation, extra]
        default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        keys.append(Key(field.alias or name, annotation, default, field.description or ""))
    return keys


def check_shape(recipe: object) -> list[Problem]:
    """Problems of a recipe's plain values, as YAML gives them."""
    if recipe is None:
        return [
            Problem(
                (),
                "the recipe is empty. It needs at least 'towers:'; see `vlkd recipes show"
                " quickstart`.",
            )
        ]
    if not isinstance(recipe, Mapping):
        return [
            Problem(
                (), f"a recipe is a mapping of sections such as 'towers:', got {shown(recipe)}."
            )
        ]
    handled: dict[str, Check] = {
        "towers": lambda value, path: _mapping(value, path, "towers by name", check_tower),
        "distillers": lambda value, path: _list(value, path, "distillers", check_distiller),
        "data": check_data,
        "train": lambda value, path: _section(value, path, TrainSpec),
        "optimizer": check_optimizer_section,
        "schedule": lambda value, path: _section(value, path, ScheduleSpec),
        "evals": lambda value, path: _list(value, path, "suites", check_eval),
        "synthesis": check_synthesis_section,
        "reports": lambda value, path: _list(value, path, "sinks", check_report),
    }
    problems = _walk(recipe, (), Recipe, handled, "recipe")
    if "towers" in recipe and not recipe["towers"]:
        problems.append(
            Problem(
                ("towers",),
                "a recipe needs at least one tower: `image: {builder: torchvision, model:"
                " resnet18}`.",
            )
        )
    return problems


def check_tower(tower: object, path: Path) -> list[Problem]:
    if not isinstance(tower, Mapping):
        return [_no_mapping(tower, path, "builder")]
    if not str(path[-1]).isidentifier():
        return [Problem(path, "a tower's name is made of letters, digits and underscores.")]
    handled: dict[str, Check] = {kind: _component_check(kind) for kind in TOWER_COMPONENTS}
    handled["heads"] = lambda value, at: _mapping(value, at, "heads by name", handled["head"])
    own, other = _split(tower, TowerSpec)
    problems = _walk(own, path, TowerSpec, handled, "tower")
    shared = section_keys(TowerSpec)
    if all(tower.get(key) is None for key in _SOURCES):
        # Whose keys these are is not known; only what may be the misspelled source is worth a line.
        return problems + [
            unknown_key(key, _SOURCES, (*path, key), "tower")
            for key in other
            if closest(key, _SOURCES)
        ]
    if tower.get("builder") is None:
        trust = [RUN_TRUST] if tower.get("run") is not None else []
        return problems + check_keys(trust, other, path, "tower", shared)
    return problems + check_component(
        "builder", tower["builder"], other, path, shared, name_key="builder"
    )


def check_distiller(distiller: object, path: Path) -> list[Problem]:
    return _named(distiller, path, "distiller", DistillerSpec, "name")


def check_eval(entry: Any, path: Path) -> list[Problem]:
    return _named(entry, path, "suite", EvalSpec, "suite")


def check_synthesis_section(synthesis: object, path: Path) -> list[Problem]:
    if synthesis is None:
        return []
    if not isinstance(synthesis, Mapping):
        return [_no_mapping(synthesis, path, "miners")]

    def check_scorer(scorer: object, at: Path) -> list[Problem]:
        return _named(scorer, at, "scorer", ScorerSpec, "name")

    handled: dict[str, Check] = {
        "data": check_reader,
        "scorers": lambda value, at: _list(value, at, "scorers", check_scorer),
    }
    return _walk(synthesis, path, SynthesisSpec, handled, "synthesis")


def check_report(report: object, path: Path) -> list[Problem]:
    if isinstance(report, str):
        signature = known_signature("sink", report, path)
        return [signature] if isinstance(signature, Problem) else []
    return _named(report, path, "sink", Component, "name")


def check_optimizer_section(optimizer: object, path: Path) -> list[Problem]:
    if not isinstance(optimizer, Mapping):
        return [_no_mapping(optimizer, path, "name")]
    name = optimizer.get("name", "adamw")

    def check_group(group: object, at: Path) -> list[Problem]:
        if not isinstance(group, Mapping):
            return [_no_mapping(group, at, "match")]
        own, other = _split(group, GroupSpec)
        return _walk(own, at, GroupSpec, {}, "group") + check_optimizer(
            name, other, at, section_keys(GroupSpec)
        )

    own, other = _split(optimizer, OptimizerSpec)
    handled: dict[str, Check] = {
        "groups": lambda value, at: _list(value, at, "groups", check_group)
    }
    problems = _walk(own, path, OptimizerSpec, handled, "optimizer")
    return problems + check_optimizer(name, other, path, section_keys(OptimizerSpec))


def check_data(data: object, path: Path) -> list[Problem]:
    if data is None:
        return []
    if not isinstance(data, Mapping):
        return [_no_mapping(data, path, "reader")]
    augment = _component_check("augment")
    handled: dict[str, Check] = {
        "augment": augment,
        "views": lambda value, at: _mapping(value, at, "views by name", augment),
        "readers": lambda value, at: (
            [] if value is None else _list(value, at, "readers", partial(check_reader, mixed=True))
        ),
    }
    own, other = _split(data, DataSpec)
    problems = _walk(own, path, DataSpec, handled, "data")
    shared = section_keys(DataSpec)
    if data.get("reader") is not None:
        return problems + check_component(
            "reader", data["reader"], other, path, shared, name_key="reader"
        )
    if data.get("readers") is None:
        return [
            *problems,
            Problem(path, "name the reader: `reader: csv`, or several under `readers:`.", False),
        ]
    return problems + check_keys((), other, path, "data", shared)


def _walk(
    values: Mapping[str, object],
    path: Path,
    model: type[BaseModel],
    handled: Mapping[str, Check],
    owner: str,
) -> list[Problem]:
    """Check a section's own keys: the handled ones by their check, the others by their type."""
    keys = {key.name: key for key in section_keys(model)}
    naming = _NAMING.get(model, "name" if issubclass(model, Component) else None)
    problems = []
    for name, value in values.items():
        key_path = (*path, name)
        if name not in keys:
            problems.append(unknown_key(name, list(keys), key_path, owner))
        elif name == naming and value is not None and not isinstance(value, str):
            # What is not a name at all is reported with the names that exist.
            continue
        elif name in handled:
            problems += handled[name](value, key_path)
        else:
            problems += check_value(keys[name], value, key_path)
    for key in keys.values():
        if key.required and key.name not in values:
            problems.append(Problem(path, f"key '{key.name}' is missing from the {owner}.", False))
    return problems


def _section(value: object, path: Path, model: type[BaseModel]) -> list[Problem]:
    if not isinstance(value, Mapping):
        return [_no_mapping(value, path, next(iter(model.model_fields)))]
    return _walk(value, path, model, {}, str(path[-1]))


def _named(
    value: object,
    path: Path,
    kind: str,
    model: type[BaseModel],
    name_key: str,
    handled: Mapping[str, Check] = MappingProxyType({}),
) -> list[Problem]:
    """A component with the keys that its section declares and those of its signature."""
    if not isinstance(value, Mapping):
        return [_no_mapping(value, path, name_key)]
    own, other = _split(value, model)
    problems = _walk(own, path, model, handled, kind)
    default = model.model_fields[name_key].default
    if name_key not in value and not isinstance(default, str):
        return problems
    return problems + check_component(
        kind, value.get(name_key, default), other, path, section_keys(model), name_key
    )


def _component_check(kind: str) -> Check:
    model = PLACES.get(kind, Component)
    handled = {"mask": _component_check("mask")} if kind == "augment" else {}
    return lambda value, path: (
        [] if value is None else _named(value, path, kind, model, "name", handled)
    )


def _mapping(value: object, path: Path, what: str, check: Check) -> list[Problem]:
    if not isinstance(value, Mapping):
        return [Problem(path, f"expected {what}, got {shown(value)}.")]
    return [problem for name, item in value.items() for problem in check(item, (*path, name))]


def _list(value: object, path: Path, what: str, check: Check) -> list[Problem]:
    if not isinstance(value, list):
        return [Problem(path, f"expected a list of {what}, got {shown(value)}.")]
    return [
        problem for number, item in enumerate(value) for problem in check(item, (*path, number))
    ]


def _split(
    values: Mapping[str, object], model: type[BaseModel]
) -> tuple[dict[str, object], dict[str, object]]:
    """The keys that the section declares, and the component's."""
    declared = [key.name for key in section_keys(model)]
    own = {key: value for key, value in values.items() if key in declared}
    return own, {key: value for key, value in values.items() if key not in declared}


def _no_mapping(value: object, path: Path, name_key: str) -> Problem:
    hint = (
        f" Write {{{name_key}: {value}}}."
        if isinstance(value, str)
        else f" {written(path[-1:])} takes keys such as '{name_key}'."
    )
    return Problem(path, f"expected keys, got {shown(value)}.{hint}")
