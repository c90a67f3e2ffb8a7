"""What a recipe's settings mean together: impossible combinations, and settings that would have no
effect."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from typing import Any

from vlkd_cli.catalog import did_you_mean, missing_extra, names
from vlkd_cli.errors import MissingPackageError, RecipeError
from vlkd_cli.recipe.address import (
    MAIN_VIEW,
    Address,
    Arrow,
    Side,
    SideError,
    arrow_of,
    modality_of,
    text_names,
)
from vlkd_cli.recipe.data_checks import check_offers
from vlkd_cli.recipe.evaluation_data import check_evaluation_data
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.objectives import check_objective, listed
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import DistillerSpec, EvalSpec, Recipe, TowerSpec
from vlkd_cli.recipe.types import MODALITY_NAMES

# Settings of a tower that say how its parameters come to be or learn; a tower that follows another
# has none of its own.
_NOT_FOR_FOLLOWERS = (
    "builder",
    "run",
    "tower",
    "checkpoint",
    "pooler",
    "head",
    "heads",
    "adapter",
    "prompt",
    "lr",
    "layer_decay",
    "cache",
)


def check_recipe(recipe: Recipe) -> list[Problem]:
    """Every problem of a recipe whose shape is right."""
    problems: list[Problem] = []
    for name, tower in recipe.towers.items():
        path = ("towers", name)
        problems += _check_source(recipe, name, tower, path)
        if tower.follows is None:
            problems += _check_learning(tower, path)
            problems += _check_cache(recipe, name, tower, path)
            problems += _check_adapter(tower, path)
    problems += _check_distillers(recipe)
    problems += _check_data(recipe)
    problems += check_offers(recipe)
    problems += _check_training(recipe)
    problems += _check_evals(recipe)
    problems += check_evaluation_data(recipe)
    return problems


def _check_source(recipe: Recipe, name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    sources = [key for key in ("builder", "run", "follows") if getattr(tower, key) is not None]
    if not sources:
        yield Problem(path, "say where the tower comes from: `builder:`, `run:` or `follows:`.")
    elif len(sources) > 1:
        yield Problem(
            (*path, sources[1]),
            f"a tower comes from one place, and this one has {' and '.join(sources)}. Remove one.",
        )
    if tower.run is not None:
        for part in ("pooler", "head", "adapter", "prompt"):
            if getattr(tower, part) is not None:
                yield Problem(
                    (*path, part), "a tower of a run comes as it was trained there. Remove it."
                )
    for key in ("tower", "checkpoint"):
        if getattr(tower, key) is not None and tower.run is None:
            yield Problem((*path, key), "has no effect without `run:`.")
    if tower.follows is None:
        if tower.momentum != TowerSpec.model_fields["momentum"].default:
            yield Problem((*path, "momentum"), "has no effect without `follows:`.")
        if tower.builder is not None and modality_of(recipe.towers, name) is None:
            yield Problem(
                path,
                "say `modality: image` or `modality: text`; neither the tower's name nor its"
                " builder tells.",
            )
        yield from _check_modality(name, tower, path)
        return
    if tower.follows not in recipe.towers or tower.follows == name:
        others = [other for other in recipe.towers if other != name]
        guess = did_you_mean(tower.follows, others)
        yield Problem(
            (*path, "follows"),
            f"no other tower '{tower.follows}'.{guess} Towers: {', '.join(others)}.",
        )
    elif recipe.towers[tower.follows].follows is not None:
        yield Problem(
            (*path, "follows"),
            f"'{tower.follows}' itself follows '{recipe.towers[tower.follows].follows}'. Follow"
            " that one.",
        )
    elif not _learns(recipe.towers[tower.follows]):
        yield Problem(
            (*path, "follows"),
            f"'{tower.follows}' is frozen, so there is nothing to follow. Use '{tower.follows}'"
            " itself.",
        )
    for key in _NOT_FOR_FOLLOWERS:
        if getattr(tower, key) not in (None, {}) and key not in ("builder", "run"):
            yield Problem(
                (*path, key),
                f"has no effect on a tower that follows another. Set it on '{tower.follows}'.",
            )
    if tower.train != "all":
        yield Problem(
            (*path, "train"), "has no effect on a tower that follows another: it only ever follows."
        )


def _check_modality(name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    """Whether the builder builds towers of the modality that is declared or in the tower's name."""
    offered = attributes_of("builder", tower.builder).get("modalities") if tower.builder else None
    named = [word for word in MODALITY_NAMES if word in name.lower().split("_")]
    wanted = [tower.modality] if tower.modality is not None else named
    if not offered or not wanted or any(word in offered for word in wanted):
        return
    fitting = [
        builder
        for builder in names("builder")
        if wanted[0] in attributes_of("builder", builder).get("modalities", ())
    ]
    remedy = f"Choose one of: {', '.join(fitting)}" if fitting else "Choose another modality"
    if tower.modality is None:
        remedy += f"; or rename the tower, or say `modality: {offered[0]}`"
    builds = f"builder '{tower.builder}' builds {' and '.join(offered)} towers"
    yield Problem((*path, "builder"), f"{builds}, not {wanted[0]} towers. {remedy}.")


def check_sinks(recipe: Recipe) -> Iterator[Problem]:
    """Sinks whose package is not installed; of interest only where the recipe is to be trained."""
    for number, report in enumerate(recipe.reports):
        name = report if isinstance(report, str) else report.name
        extra = missing_extra("sink", name)
        if extra is not None:
            yield Problem(("reports", number), str(MissingPackageError(f"sink '{name}'", extra)))


def _check_learning(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    if tower.train == "none":
        for key in ("lr", "layer_decay"):
            if getattr(tower, key) is not None:
                yield Problem((*path, key), "has no effect: the tower is frozen (train: none).")
        random_parts = [part for part in ("head", "pooler") if _has_random_weights(tower, part)]
        for part in random_parts if tower.run is None else []:
            yield Problem(
                (*path, part),
                "would stay as randomly drawn: the tower is frozen (train: none). Say train: head,"
                f" or remove the {part}.",
            )
    if tower.train == "head":
        if tower.layer_decay is not None:
            yield Problem(
                (*path, "layer_decay"), "has no effect: only the head learns (train: head)."
            )
        if tower.head is None and not _has_random_weights(tower, "pooler") and tower.run is None:
            yield Problem(
                (*path, "train"),
                "'head' leaves nothing that learns: the tower has no head. Add `head: {name:"
                " linear, ...}`.",
            )
    if tower.train == "prompt" and tower.prompt is None and tower.run is None:
        yield Problem(
            (*path, "train"),
            "'prompt' leaves nothing that learns: the tower has no prompt. Add `prompt: {tokens:"
            " 4}`.",
        )
    if (
        isinstance(tower.train, list)
        and tower.head is not None
        and tower.run is None
        and tower.train
        and not _reaches_head(tower.train)
    ):
        yield Problem(
            (*path, "head"),
            "would stay as randomly drawn: no pattern of `train:` names it. Add 'head.*' to the"
            " patterns.",
        )
    if tower.train == []:
        yield Problem(
            (*path, "train"), "an empty list of patterns leaves nothing that learns. Write none."
        )


def _reaches_head(patterns: list[str]) -> bool:
    """Whether a pattern takes in at least part of a head (its parameters are called
    head.something)."""
    return any(
        fnmatch("head.weight", pattern) or pattern.split(".")[0] == "head"
        for pattern in patterns
        if not pattern.startswith("!")
    )


def _has_random_weights(tower: TowerSpec, part: str) -> bool:
    component = getattr(tower, part)
    if component is None:
        return False
    said = attributes_of(part, component.name)
    return bool(said.get("has_weights", True) if part == "head" else said.get("starts_random"))


def _check_cache(recipe: Recipe, name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    if not tower.cache:
        return
    trains_backbone = tower.train not in ("none", "head") and not _only_head_patterns(tower.train)
    changing = next(
        (
            part
            for part in ("adapter", "prompt")
            if getattr(tower, part) is not None and tower.train != "none"
        ),
        None,
    )
    if trains_backbone or changing:
        what = f"its {changing} learns" if changing else "its backbone learns"
        yield Problem(
            (*path, "cache"),
            f"the tower's features change while {what}. Remove cache, or say train: none (or"
            " head).",
        )
    elif modality_of(recipe.towers, name) == "image" and recipe.data is not None:
        augment = recipe.data.augment
        if augment is None or augment.name != "none":
            yield Problem(
                (*path, "cache"),
                "stored features of images that are augmented at random would be wrong from the"
                " second epoch on. Say data.augment: {name: none}, or cache: false.",
            )
    streamed = _streamed(recipe)
    if streamed is not None:
        yield Problem(
            (*path, "cache"),
            f"reader '{streamed}' streams here: samples have no positions that features could be"
            " cached by. Remove cache, or read by position.",
        )


def _only_head_patterns(train: Any) -> bool:
    return isinstance(train, list) and all(pattern.startswith(("head", "!")) for pattern in train)


def _check_adapter(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    """The adapters' own rules: methods and architectures that do not go together."""
    if (
        tower.adapter is None
        and tower.prompt is None
        and tower.builder != "adapters"
        and tower.train != "prompt"
    ):
        return
    rules = importlib.import_module("vlkd_cli.recipe.adapters")
    for said in rules.check(tower.model_dump(mode="json", exclude_none=True)):
        key, colon, text = said.partition(": ")
        if colon and " " not in key:
            yield Problem((*path, *key.split(".")), text)
        else:
            yield Problem(path, said)


def _check_distillers(recipe: Recipe) -> Iterator[Problem]:
    if not recipe.distillers:
        return
    learners = {name for name, tower in recipe.towers.items() if _learns(tower)}
    if not learners:
        yield Problem(
            ("towers",),
            "every tower is frozen, so there is nothing to learn. Give one `train: all` or `train:"
            " head`.",
        )
    if recipe.data is None:
        yield Problem(
            (),
            "key 'data' is missing: the distillers need samples. `data: {reader: shapes}` draws"
            " some.",
        )
    used: set[str] = set()
    complete = True
    for number, spec in enumerate(recipe.distillers):
        arrow, problems = _arrow(recipe, spec, ("distillers", number))
        yield from problems
        if arrow is None or problems:
            complete = False
            continue
        used |= {a.tower for a in (*arrow.addresses(), *arrow.episode_addresses())}
        students = _towers_of(call.student for call in arrow.calls)
        if (
            learners
            and not students & learners
            and not _teacher_learns(recipe, spec, arrow, learners)
        ):
            names = " and ".join(sorted(students))
            yield Problem(
                ("distillers", number), f"nothing learns from it: its student '{names}' is frozen."
            )
    if complete:
        for name in sorted(learners - used):
            yield Problem(
                ("towers", name),
                "learns, but no distiller names it. Say train: none, or add a distiller with its"
                " address.",
            )


def _arrow(recipe: Recipe, spec: DistillerSpec, path: Path) -> tuple[Arrow | None, list[Problem]]:
    """The distiller's arrow, and what is wrong with it."""
    try:
        arrow = arrow_of(recipe, spec)
    except SideError as error:
        return None, [Problem((*path, error.side), f"{error}.")]
    except RecipeError as error:
        return None, [Problem((*path, "name"), str(error))]
    problems = []
    sides = [*arrow.calls, *([arrow.episode] if arrow.episode is not None else [])]
    for side in ("student", "teacher"):
        for address in dict.fromkeys(a for call in sides for a in listed(getattr(call, side))):
            problems += _check_address(recipe, address, (*path, side), is_student=side == "student")
    return arrow, problems or list(check_objective(recipe, spec, arrow, path))


def _check_address(
    recipe: Recipe, address: Address, path: Path, *, is_student: bool
) -> Iterator[Problem]:
    if address.tower not in recipe.towers:
        guess = did_you_mean(address.tower, recipe.towers)
        yield Problem(
            path, f"no tower '{address.tower}'.{guess} Towers: {', '.join(recipe.towers)}."
        )
        return
    views = [*recipe.data.views, *text_names(recipe.data)] if recipe.data is not None else []
    if address.input != MAIN_VIEW and recipe.data is not None and address.input not in views:
        known = f"Views: {', '.join(views)}." if views else "Name it under data.views."
        guess = did_you_mean(address.input, views)
        yield Problem(path, f"no view '{address.input}'.{guess} {known}")
    outputs = ["backbone", "head", "tokens", *_output_heads(recipe, address.tower)]
    if address.output not in outputs:
        guess = did_you_mean(address.output, outputs)
        yield Problem(
            path,
            f"tower '{address.tower}' has no output '{address.output}'.{guess} Outputs:"
            f" {', '.join(outputs)}.",
        )
    if is_student and recipe.towers[address.tower].follows is not None:
        yield Problem(
            path,
            f"tower '{address.tower}' follows another and never learns itself, so it cannot be the"
            " student.",
        )


def _output_heads(recipe: Recipe, name: str) -> list[str]:
    """The heads of a tower; one that follows another has that one's."""
    tower = recipe.towers[name]
    tower = recipe.towers.get(tower.follows or "", tower)
    return [head for head in tower.all_heads if head != "head"]


def _towers_of(sides: Iterable[Side | None]) -> set[str]:
    return {address.tower for side in sides for address in listed(side)}


def _teacher_learns(recipe: Recipe, spec: DistillerSpec, arrow: Arrow, learners: set[str]) -> bool:
    """A symmetric distiller moves its teacher side too."""
    symmetric = attributes_of("distiller", spec.name).get("direction") == "symmetric"
    return symmetric and bool(_towers_of(call.teacher for call in arrow.calls) & learners)


def _learns(tower: TowerSpec) -> bool:
    return tower.follows is None and tower.train != "none"


def _check_data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data is None:
        return
    if data.reader is not None and data.readers is not None:
        yield Problem(
            ("data", "readers"),
            "data has 'reader' or 'readers', not both. Move the one reader into the list.",
        )
    if data.readers is not None and not data.readers:
        yield Problem(("data", "readers"), "an empty list reads nothing.")
    if data.workers == 0 and data.prefetch != type(data).model_fields["prefetch"].default:
        yield Problem(("data", "prefetch"), "has no effect without workers (workers: 0).")
    for view in data.views:
        if not view.isidentifier() or view == MAIN_VIEW:
            yield Problem(
                ("data", "views", view),
                "a view's name is made of letters, digits and underscores and is not"
                f" '{MAIN_VIEW}'.",
            )


def _streamed(recipe: Recipe) -> str | None:
    """The first reader that reads in an order of its own."""
    if recipe.data is None:
        return None
    entries = recipe.data.readers or [{"reader": recipe.data.reader, **recipe.data.keys}]
    for entry in entries:
        said = attributes_of("reader", str(entry.get("reader")))
        if said.get("streams") or any(entry.get(key) for key in said.get("streams_by_key", ())):
            return str(entry.get("reader"))
    return None


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    if schedule.warmup_steps and schedule.warmup_epochs:
        yield Problem(
            ("schedule", "warmup_epochs"),
            "warm-up lasts for warmup_steps or for warmup_epochs, not both. Remove one.",
        )
    if schedule.name in ("constant", "steps") and schedule.end_factor:
        yield Problem(("schedule", "end_factor"), f"has no effect with name: {schedule.name}.")
    if schedule.name == "steps" and not schedule.milestones:
        yield Problem(
            ("schedule", "name"),
            "steps needs the epochs at which the rate falls: `milestones: [30, 60]`.",
        )
    for key in ("milestones", "factor") if schedule.name != "steps" else ():
        if getattr(schedule, key) != type(schedule)().model_dump()[key]:
            yield Problem(("schedule", key), "has no effect without name: steps.")
    if optimizer.decay_all and optimizer.weight_decay == 0:
        yield Problem(("optimizer", "decay_all"), "has no effect with weight_decay: 0.")
    suites = [entry.title for entry in recipe.evals]
    best = recipe.train.best
    if best is not None and best.partition(".")[0] not in suites:
        guess = did_you_mean(best.partition(".")[0], suites)
        known = (
            f"Suites of this recipe: {', '.join(suites)}."
            if suites
            else "Add its suite under evals."
        )
        yield Problem(("train", "best"), f"no entry of evals gives '{best}'.{guess} {known}")
    names = [report if isinstance(report, str) else report.name for report in recipe.reports]
    for name, count in Counter(names).items():
        if count > 1:
            yield Problem(("reports",), f"'{name}' is listed {count} times.")


def _check_evals(recipe: Recipe) -> Iterator[Problem]:
    modalities = {modality_of(recipe.towers, name) for name in recipe.towers}
    followed = any(tower.run is not None for tower in recipe.towers.values())
    for number, entry in enumerate(recipe.evals):
        path = ("evals", number)
        if not (entry.every_epochs or entry.every_steps or entry.first or entry.last):
            yield Problem(path, "never runs: say every_epochs, every_steps, first or last.")
        needed = attributes_of("suite", entry.suite).get("modalities", frozenset())
        missing = (
            sorted(needed - modalities)
            if isinstance(needed, frozenset | set) and not followed and None not in modalities
            else []
        )
        if missing:
            yield Problem(
                (*path, "suite"),
                f"'{entry.suite}' needs a tower for {' and '.join(missing)}, and the recipe has"
                " none.",
            )
        yield from _check_eval_tower(recipe, entry, needed, path)


def _check_eval_tower(
    recipe: Recipe, entry: EvalSpec, modalities: Any, path: Path
) -> Iterator[Problem]:
    if entry.tower is None:
        return
    if entry.tower not in recipe.towers:
        guess = did_you_mean(entry.tower, recipe.towers)
        yield Problem(
            (*path, "tower"),
            f"no tower '{entry.tower}'.{guess} Towers: {', '.join(recipe.towers)}.",
        )
        return
    modality = modality_of(recipe.towers, entry.tower)
    if modality is not None and modalities and modality not in modalities:
        yield Problem(
            (*path, "tower"),
            f"'{entry.suite}' measures towers for {' and '.join(sorted(modalities))}, and"
            f" '{entry.tower}' is one for {modality}. Name another.",
        )
