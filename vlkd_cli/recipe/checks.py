"""What a recipe's settings mean together: impossible combinations, and settings that would have no
effect."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.recipe.address import MAIN_VIEW, Address, Arrow, arrow_of, modality_of
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.objectives import about, check_objective
from vlkd_cli.recipe.schema import DistillerSpec, Recipe, TowerSpec

# Settings of a tower that say how its parameters come to be or learn; a tower that follows another
# has none of its own.
_NOT_FOR_FOLLOWERS = (
    "builder",
    "run",
    "tower",
    "pooler",
    "head",
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
    problems += _check_training(recipe)
    problems += _check_evals(recipe)
    return problems


def tower_modality(name: str, tower: TowerSpec) -> str | None:
    """A tower's modality as far as the recipe tells: declared, by its name, or by a builder that
    knows only one."""
    found = modality_of(name, tower.modality)
    if found is not None or tower.builder is None:
        return found
    modalities = about("builder", tower.builder).get("modalities", ())
    return modalities[0] if len(modalities) == 1 else None


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
    if tower.tower is not None and tower.run is None:
        yield Problem((*path, "tower"), "has no effect without `run:`.")
    if tower.follows is None:
        if tower.momentum != TowerSpec.model_fields["momentum"].default:
            yield Problem((*path, "momentum"), "has no effect without `follows:`.")
        if tower.builder is not None and tower_modality(name, tower) is None:
            yield Problem(
                path,
                "say `modality: image` or `modality: text`; neither the tower's name nor its"
                " builder tells.",
            )
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
        if getattr(tower, key) is not None and key not in ("builder", "run"):
            yield Problem(
                (*path, key),
                f"has no effect on a tower that follows another. Set it on '{tower.follows}'.",
            )
    if tower.train != "all":
        yield Problem(
            (*path, "train"), "has no effect on a tower that follows another: it only ever follows."
        )


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
    return component is not None and (part == "head" or component.name == "attention")


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
    elif tower_modality(name, tower) == "image" and recipe.data is not None:
        augment = recipe.data.augment
        if augment is None or augment.name != "none":
            yield Problem(
                (*path, "cache"),
                "stored features of images that are augmented at random would be wrong from the"
                " second epoch on. Say data.augment: {name: none}, or cache: false.",
            )
    if recipe.data is not None and "webdataset" in _reader_names(recipe):
        yield Problem(
            (*path, "cache"),
            "reader 'webdataset' reads shards in their own order, so features cannot be kept by"
            " position.",
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
        used |= {address.tower for address in arrow.addresses()}
        if (
            learners
            and not _side_towers(arrow.student) & learners
            and not _teacher_learns(recipe, spec, arrow, learners)
        ):
            names = " and ".join(sorted(_side_towers(arrow.student)))
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
    """The distiller's arrow, and what is wrong with its addresses."""
    said = about("distiller", spec.name)
    takes, takes_lists = said.get("takes", "one"), bool(said.get("takes_lists", False))
    try:
        arrow = arrow_of(recipe, spec, takes, said.get("needs_teacher", True))
    except ValueError as error:
        side, colon, text = str(error).partition(": ")
        where = (*path, side) if colon and side in ("student", "teacher") else path
        if where == path:
            where = next(
                (
                    (*path, key)
                    for key in ("student", "teacher")
                    if _mentions(getattr(spec, key), str(error))
                ),
                path,
            )
        return None, [Problem(where, f"{text if colon and where[-1] == side else error}.")]
    problems = []
    for side in ("student", "teacher"):
        addresses = getattr(arrow, side)
        at = (*path, side)
        if addresses is None:
            continue
        if takes == "one" and not takes_lists and not isinstance(addresses, Address):
            problems.append(
                Problem(at, f"distiller '{spec.name}' takes one address, got {len(addresses)}.")
            )
        if takes == "pair" and (
            isinstance(addresses, Address) or (len(addresses) != 2 and not takes_lists)
        ):
            problems.append(
                Problem(
                    at,
                    f"distiller '{spec.name}' takes two addresses, the image and the text side:"
                    " [image, text].",
                )
            )
        if takes == "views" and isinstance(addresses, Address):
            problems.append(
                Problem(
                    at, f"distiller '{spec.name}' takes a list of addresses: [image, image@view_b]."
                )
            )
        for address in [addresses] if isinstance(addresses, Address) else addresses:
            problems += _check_address(recipe, address, at, is_student=side == "student")
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
    views = list(recipe.data.views) if recipe.data is not None else []
    if address.view != MAIN_VIEW and recipe.data is not None and address.view not in views:
        known = f"Views: {', '.join(views)}." if views else "Name it under data.views."
        yield Problem(path, f"no view '{address.view}'.{did_you_mean(address.view, views)} {known}")
    if is_student and recipe.towers[address.tower].follows is not None:
        yield Problem(
            path,
            f"tower '{address.tower}' follows another and never learns itself, so it cannot be the"
            " student.",
        )


def _mentions(side: Any, text: str) -> bool:
    return side is not None and any(
        f"'{part}'" in text for part in ([side] if isinstance(side, str) else side)
    )


def _side_towers(side: Address | tuple[Address, ...] | None) -> set[str]:
    if side is None:
        return set()
    return {address.tower for address in ([side] if isinstance(side, Address) else side)}


def _teacher_learns(recipe: Recipe, spec: DistillerSpec, arrow: Arrow, learners: set[str]) -> bool:
    """A symmetric distiller moves its teacher side too."""
    symmetric = about("distiller", spec.name).get("direction") == "symmetric"
    return symmetric and bool(_side_towers(arrow.teacher) & learners)


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


def _reader_names(recipe: Recipe) -> list[str]:
    if recipe.data is None:
        return []
    return [str(entry.get("reader")) for entry in recipe.data.readers or []] + [
        recipe.data.reader or ""
    ]


def _check_training(recipe: Recipe) -> Iterator[Problem]:
    schedule, optimizer = recipe.schedule, recipe.optimizer
    if schedule.warmup_steps and schedule.warmup_epochs:
        yield Problem(
            ("schedule", "warmup_epochs"),
            "warm-up lasts for warmup_steps or for warmup_epochs, not both. Remove one.",
        )
    if schedule.name == "constant" and schedule.end_factor:
        yield Problem(("schedule", "end_factor"), "has no effect with name: constant.")
    if optimizer.decay_all and optimizer.weight_decay == 0:
        yield Problem(("optimizer", "decay_all"), "has no effect with weight_decay: 0.")
    suites = [entry.suite for entry in recipe.evals]
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
    modalities = {tower_modality(name, tower) for name, tower in recipe.towers.items()}
    followed = any(tower.run is not None for tower in recipe.towers.values())
    for number, entry in enumerate(recipe.evals):
        path = ("evals", number)
        if not (entry.every_epochs or entry.every_steps or entry.first or entry.last):
            yield Problem(path, "never runs: say every_epochs, every_steps, first or last.")
        needed = about("suite", entry.suite).get("modalities", frozenset())
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
