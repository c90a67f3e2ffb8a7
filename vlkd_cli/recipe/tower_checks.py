"""Whether a tower's settings go together: where it comes from and what of it learns."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from fnmatch import fnmatch

from vlkd_cli.catalog import did_you_mean, names
from vlkd_cli.recipe.address import modality_of
from vlkd_cli.recipe.arrow_checks import learns
from vlkd_cli.recipe.head_checks import head_path
from vlkd_cli.recipe.messages import Path, Problem
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.params import attributes_of
from vlkd_cli.recipe.schema import Recipe, TowerSpec
from vlkd_cli.recipe.types import MODALITY_NAMES, Schedule

# Settings of a tower's initialization and training; a tower that follows another has none of its
# own.
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
    "freeze_batch_norm_stats",
    "dtype",
    "lr",
    "layer_decay",
    "init",
    "cache",
)


def check_towers(recipe: Recipe) -> Iterator[Problem]:
    """Problems of every tower."""
    for name, tower in recipe.towers.items():
        path = ("towers", name)
        yield from _check_source(recipe, name, tower, path)
        if tower.follows is None:
            yield from _check_learning(tower, path)
            yield from _check_batch_norms(tower, path)
            yield from _check_dtype(tower, path)
            yield from _check_adapter(recipe, name, tower, path)
            yield from _check_init(recipe, name, tower, path)


def _check_source(recipe: Recipe, name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    sources = [key for key in ("builder", "run", "follows") if getattr(tower, key) is not None]
    if not sources:
        yield Problem(path, "name where the tower comes from: `builder:`, `run:` or `follows:`.")
    elif len(sources) > 1:
        yield Problem(
            (*path, sources[1]),
            f"a tower has one source, but this one has {' and '.join(sources)}. Remove one.",
        )
    if tower.run is not None:
        for part in ("pooler", "prompt"):
            if getattr(tower, part) is not None:
                yield Problem(
                    (*path, part), "a tower of a run comes as it was trained there. Remove it."
                )
    yield from _check_soup(recipe, tower, path)
    for key in ("tower", "checkpoint"):
        if getattr(tower, key) is not None and tower.run is None:
            yield Problem((*path, key), "has no effect without `run:`.")
    if tower.follows is None:
        for key in ("momentum", "shuffle"):
            if getattr(tower, key) != TowerSpec.model_fields[key].default:
                yield Problem((*path, key), "has no effect without `follows:`.")
        if tower.builder is not None and modality_of(recipe.towers, name) is None:
            offered = attributes_of("builder", tower.builder).get("modalities", MODALITY_NAMES)
            yield Problem(
                path,
                f"set {' or '.join(f'`modality: {word}`' for word in offered)}; the tower's"
                " name and builder do not determine it.",
            )
        yield from _check_modality(name, tower, path)
        yield from _check_keys_of_modality(recipe, name, tower, path)
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
    elif not learns(recipe.towers[tower.follows]):
        yield Problem(
            (*path, "follows"),
            f"'{tower.follows}' is frozen, so there is nothing to follow. Use '{tower.follows}'"
            " itself.",
        )
    momentum = tower.momentum
    ends = momentum.ends if isinstance(momentum, Schedule) else (momentum,)
    if not all(0 <= end <= 1 for end in ends):
        yield Problem(
            (*path, "momentum"),
            "is the fraction of the average that stays after a step, from 0 to 1, got"
            f" {', '.join(f'{end:g}' for end in ends)}.",
        )
    for key in _NOT_FOR_FOLLOWERS:
        default = TowerSpec.model_fields[key].default
        if getattr(tower, key) not in (None, {}, default) and key not in ("builder", "run"):
            yield Problem(
                (*path, key),
                f"has no effect on a tower that follows another. Set it on '{tower.follows}'.",
            )
    modality = modality_of(recipe.towers, name)
    if tower.shuffle and modality is not None and not FACTS[modality].has_views:
        yield Problem(
            (*path, "shuffle"),
            f"mixes the images of several processes, and this tower reads {FACTS[modality].plural}."
            " Remove it.",
        )
    if tower.train != "all":
        yield Problem(
            (*path, "train"), "has no effect on a tower that follows another: it only ever follows."
        )


def _check_soup(recipe: Recipe, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    """Averages of no several runs, and evaluations that are not there."""
    if not isinstance(tower.run, list):
        if tower.soup is not None:
            yield Problem(
                (*path, "soup"), "averages several runs. Give a list: `run: [runs/a, runs/b]`."
            )
        return
    if len(tower.run) < 2:
        yield Problem(
            (*path, "run"), f"a list of {len(tower.run)} has nothing to average. Name two runs."
        )
    if isinstance(tower.soup, dict):
        titles = [entry.title for entry in recipe.evals]
        title = tower.soup.get("greedy", "")
        if title not in titles:
            known = f" Entries: {', '.join(titles)}." if titles else " Add it under evals."
            yield Problem(
                (*path, "soup"),
                f"no entry of evals is '{title}'.{did_you_mean(title, titles)}{known}",
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
        remedy += f"; or rename the tower, or set `modality: {offered[0]}`"
    builds = f"builder '{tower.builder}' builds {' and '.join(offered)} towers"
    yield Problem((*path, "builder"), f"{builds}, not {wanted[0]} towers. {remedy}.")


def _check_keys_of_modality(
    recipe: Recipe, name: str, tower: TowerSpec, path: Path
) -> Iterator[Problem]:
    """Whether its keys are those of towers of its modality."""
    own = modality_of(recipe.towers, name)
    if own is None or tower.builder is None:
        return
    known = attributes_of("builder", tower.builder)
    for modality, keys in known.get("keys_of_modality", {}).items():
        for key in keys if modality != own else ():
            if tower.keys.get(key) is not None:
                yield Problem(
                    (*path, key),
                    f"is for {modality} towers, and this one takes {FACTS[own].plural}. Remove it,"
                    f" or set `modality: {modality}`.",
                )


def _check_learning(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    if tower.train == "none":
        for key in ("lr", "layer_decay"):
            if getattr(tower, key) is not None:
                yield Problem((*path, key), "has no effect: the tower is frozen (train: none).")
        for part_path in _random_parts(tower, path):
            part = "pooler" if part_path[-1] == "pooler" else "head"
            yield Problem(
                part_path,
                "would keep its random weights: the tower is frozen (train: none). Set train: head,"
                f" or remove the {part}.",
            )
    if tower.train == "head":
        if tower.layer_decay is not None:
            yield Problem(
                (*path, "layer_decay"), "has no effect: only the head is trained (train: head)."
            )
        if not _random_parts(tower, path) and tower.run is None:
            yield Problem(
                (*path, "train"),
                "'head' leaves nothing to train: the tower has no head. Add `head: {name:"
                " linear, ...}`.",
            )
    if tower.train == "prompt" and tower.prompt is None and tower.run is None:
        yield Problem(
            (*path, "train"),
            "'prompt' leaves nothing to train: the tower has no prompt. Add `prompt: {tokens: 4}`.",
        )
    patterns = tower.train if isinstance(tower.train, list) else []
    for part_path in _random_parts(tower, path) if patterns else ():
        prefix = (
            "pooler" if part_path[-1] == "pooler" else ".".join(map(str, part_path[len(path) :]))
        )
        prefix = "head" if prefix == "heads.head" else prefix
        if not _reaches(patterns, prefix):
            yield Problem(
                part_path,
                "would keep its random weights: no pattern of `train:` names it. Add"
                f" '{prefix}.*' to the patterns.",
            )
    if tower.train == []:
        yield Problem(
            (*path, "train"), "an empty list of patterns leaves nothing to train. Write none."
        )


def _check_init(recipe: Recipe, name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    if tower.init is None:
        return
    part_path, source = (*path, "init"), tower.init.from_
    if source not in recipe.towers or source == name:
        others = [other for other in recipe.towers if other != name]
        guess = did_you_mean(source, others)
        yield Problem(
            (*part_path, "from"), f"no other tower '{source}'.{guess} Towers: {', '.join(others)}."
        )
        return
    for part in ("run", "adapter", "prompt"):
        if getattr(tower, part) is not None:
            yield Problem(part_path, f"init and {part} cannot be combined. Remove one of them.")
    if tower.keys.get("pretrained"):
        yield Problem(
            (*path, "pretrained"), "has no effect: init replaces these weights. Remove it."
        )
    if tower.train == "none":
        yield Problem(
            part_path,
            "would be a smaller copy that nothing trains. Set train: all, or remove init.",
        )
    other = recipe.towers[source]
    if other.init is not None or other.follows is not None:
        yield Problem(
            (*part_path, "from"), f"'{source}' has no weights of its own. Name their source."
        )
    ours, theirs = modality_of(recipe.towers, name), modality_of(recipe.towers, source)
    if ours is not None and theirs is not None and ours != theirs:
        yield Problem(
            (*part_path, "from"),
            f"'{source}' takes {FACTS[theirs].plural}, and this tower takes {FACTS[ours].plural}."
            f" Inherit from a tower for {FACTS[ours].plural}.",
        )
    elif other.builder is not None and tower.builder is not None and other.builder != tower.builder:
        yield Problem(
            (*part_path, "from"),
            f"'{source}' is of builder '{other.builder}', and this one of '{tower.builder}'."
            " Inherit from a tower of the same builder.",
        )


def _check_batch_norms(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    adapted = tower.adapter is not None or tower.prompt is not None
    if tower.freeze_batch_norm_stats and (adapted or not trains_backbone(tower)):
        yield Problem(
            (*path, "freeze_batch_norm_stats"),
            "has no effect: the backbone is frozen, and the statistics of its batch norms with it."
            " Remove it.",
        )


def _check_dtype(tower: TowerSpec, path: Path) -> Iterator[Problem]:
    if tower.dtype is not None and trains_backbone(tower):
        yield Problem(
            (*path, "dtype"),
            "is for frozen backbones, and this one is trained: small updates would be lost in 16"
            f" bits. Set train: none (or head), or use train.precision: {tower.dtype}.",
        )


def _reaches(patterns: list[str], prefix: str) -> bool:
    """Whether the patterns take in at least part of what is called prefix.something."""

    def hits(pattern: str) -> bool:
        return fnmatch(f"{prefix}.weight", pattern) or f"{pattern}.".startswith(f"{prefix}.")

    taken = [pattern for pattern in patterns if not pattern.startswith("!")]
    # A list of exceptions alone means: everything but these.
    return any(map(hits, taken)) if taken else f"!{prefix}.*" not in patterns


def _random_parts(tower: TowerSpec, path: Path) -> list[Path]:
    """Where the parts are written whose weights are random at first; a run's are trained."""
    if tower.run is not None:
        return []
    found = [
        head_path(tower, path, name)
        for name, head in tower.all_heads.items()
        if attributes_of("head", head.name).get("has_weights", True)
    ]
    pooler = tower.pooler
    if pooler is not None and attributes_of("pooler", pooler.name).get("starts_random"):
        found.append((*path, "pooler"))
    return found


def trains_backbone(tower: TowerSpec) -> bool:
    """Whether anything of the tower's backbone is trained, its adapter or prompt included."""
    if tower.follows is not None or tower.train == "none":
        return False
    if tower.adapter is not None or tower.prompt is not None:
        return True
    return tower.train != "head" and not only_head_patterns(tower.train)


def only_head_patterns(train: object) -> bool:
    if not isinstance(train, list):
        return False
    taken = [pattern for pattern in train if not pattern.startswith("!")]
    return bool(taken) and all(pattern.startswith("head") for pattern in taken)


def _check_adapter(recipe: Recipe, name: str, tower: TowerSpec, path: Path) -> Iterator[Problem]:
    """The adapters' own rules: methods and architectures that do not go together."""
    if (
        tower.adapter is None
        and tower.prompt is None
        and tower.builder != "adapters"
        and tower.train != "prompt"
    ):
        return
    if tower.adapter is not None and tower.run is not None:
        return  # which builder the run's tower has is known once its checkpoint is open
    rules = importlib.import_module("vlkd_cli.recipe.adapters")
    section = tower.model_dump(mode="json", exclude_none=True)
    for message in rules.check({**section, "modality": modality_of(recipe.towers, name)}):
        key, colon, text = message.partition(": ")
        if colon and " " not in key:
            yield Problem((*path, *key.split(".")), text)
        else:
            yield Problem(path, message)
