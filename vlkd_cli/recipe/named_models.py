"""Models by name: what `image: resnet-base` and `like: resnet-base` in a recipe expand to, and
what a builder's model is called. The names are those of Jina Finetuner's tasks."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from vlkd_cli import catalog
from vlkd_cli.catalog import closest, did_you_mean
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.messages import Path, Problem, shown
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.types import MODALITY_NAMES, ModalityName
from vlkd_cli.recipe.yaml_file import Document

TASKS = ("text-to-text", "image-to-image", "text-to-image", "mesh-to-mesh", "synthesis")

_SOURCES = ("builder", "run", "follows")


class NamedModel(NamedTuple):
    """A row of named_models.json.

    Args:
        towers: by modality, the keys of a tower that the name expands to; none for a scorer of
            pairs of texts.
        scorer: the entry of `synthesis.scorers` that it expands to; empty for towers.
    """

    name: str
    tasks: tuple[str, ...]
    architecture: str
    towers: Mapping[ModalityName, Mapping[str, object]]
    about: str
    scorer: Mapping[str, object] = {}

    @property
    def missing(self) -> str:
        """What it needs that this version of vlkd does not have; empty where it can be used."""
        for section in self.towers.values():
            if section["builder"] not in catalog.names("builder"):
                return f"builder '{section['builder']}'"
        if self.scorer and self.scorer["name"] not in catalog.CATALOG.get("scorer", {}):
            return f"scorer '{self.scorer['name']}'"
        return ""


@functools.cache
def named_models() -> Mapping[str, NamedModel]:
    """Every model by its name, in the order of the tasks."""
    file = FilePath(__file__).with_suffix(".json")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {row["name"]: NamedModel(**{**row, "tasks": tuple(row["tasks"])}) for row in rows}


def find_named_model(name: str) -> NamedModel:
    """The model of a name, if this version of vlkd can use it.

    Raises:
        RecipeError: there is no such name, or what it needs is not there.
    """
    known = named_models()
    if name not in known:
        raise RecipeError(
            f"no model is called '{name}'.{did_you_mean(name, known)} See `vlkd list-models --task"
            f" TASK` (tasks: {', '.join(TASKS)}), or write {{builder: ..., model: ...}}."
        )
    model = known[name]
    if model.missing:
        raise RecipeError(
            f"'{name}' needs {model.missing}, which this version of vlkd does not have. Choose"
            " another model."
        )
    return model


def sections_of(name: str) -> dict[ModalityName, dict[str, object]]:
    """By modality, the towers of a model: a name of `vlkd list-models --task`, or
    BUILDER:MODEL[:PRETRAINED].

    Raises:
        RecipeError: there is no such name or builder, or the model is not a tower.
    """
    builder, colon, rest = name.partition(":")
    if not colon:
        model = find_named_model(name)
        if not model.towers:
            raise RecipeError(f"'{name}' scores pairs of texts and is not a tower. Choose another.")
        return {modality: dict(deepcopy(own)) for modality, own in model.towers.items()}
    known = catalog.names("builder")
    if builder not in known:
        raise RecipeError(
            f"'{name}': no builder '{builder}'.{did_you_mean(builder, known)} A model by"
            f" name is BUILDER:MODEL[:PRETRAINED]; builders: {', '.join(known)}."
        )
    keys = {key.name: key for key in signature_of("builder", builder).keys}
    model_name, _, tag = rest.partition(":")
    section: dict[str, object] = {"builder": builder, "model": model_name}
    if tag:
        section["pretrained"] = {"true": True, "false": False}.get(tag, tag)
    elif keys["pretrained"].default is False:
        # A model that somebody names is one with weights, unlike a tower of a recipe.
        section["pretrained"] = True
    offered = attributes_of("builder", builder)["modalities"]
    return {modality: dict(section) for modality in MODALITY_NAMES if modality in offered}


def untrained_sections_of(name: str) -> dict[str, dict[str, object]]:
    """`sections_of`, for towers that are used as they are: nothing of them is trained, and the
    weights of a head that the name has are random.

    Raises:
        RecipeError: see `sections_of`.
    """
    return {
        str(modality): {**own, "train": "head" if "head" in own else "none"}
        for modality, own in sections_of(name).items()
    }


def write_out_likes(document: Document) -> None:
    """Write every tower that is a name, `image: resnet-base`, as `image: {like: resnet-base}`, and
    every scorer as `{name: bm25}` or `{like: crossencoder-base-en}`, so that `--set` can change
    their keys."""
    for name, tower in _towers(document.value).items():
        if isinstance(tower, str):
            document.value["towers"][name] = {"like": tower}
    scorers = _scorers(document.value)
    for number, scorer in enumerate(scorers):
        if isinstance(scorer, str):
            # A misspelled name is reported as that of what it resembles.
            models = [name for name, model in named_models().items() if model.scorer]
            meant = closest(scorer, [*catalog.names("scorer"), *models])
            is_model = scorer in named_models() or (":" not in scorer and meant in models)
            scorers[number] = {"like" if is_model else "name": scorer}


def expand_likes(document: Document) -> list[Problem]:
    """Replace each `like: NAME` by the keys that the name expands to, overridden by the tower's
    own; nested mappings are replaced as a whole. Returns the problems of those that stay as they
    are."""
    problems = []
    for name, tower in _towers(document.value).items():
        if not isinstance(tower, Mapping) or tower.get("like") is None:
            continue
        if _copied(document.value, name) is not None:
            continue
        path: Path = ("towers", name)
        like: Path = (*path, "like")
        if sources := [key for key in _SOURCES if tower.get(key) is not None]:
            text = f"a tower has one source, but this one has like and {sources[0]}."
            problems.append(Problem(path, f"{text} Remove one.", about_value=False))
            continue
        try:
            own = {key: value for key, value in tower.items() if key != "like"}
            document.value["towers"][name] = {**_section(str(name), tower), **own}
        except RecipeError as error:
            place = like if like in document.origins else path
            problems.append(Problem(place, str(error), about_value=False))
    problems += _copy_towers(document)
    for number, scorer in enumerate(_scorers(document.value)):
        if isinstance(scorer, Mapping) and scorer.get("like") is not None:
            try:
                own = {key: value for key, value in scorer.items() if key != "like"}
                _scorers(document.value)[number] = {**_scorer_of(scorer["like"]), **own}
            except RecipeError as error:
                path = ("synthesis", "scorers", number)
                problems.append(Problem(path, str(error), about_value=False))
    return problems


_OF_TRAINING = (
    "train",
    "freeze_batch_norm_stats",
    "lr",
    "layer_decay",
    "cache",
    "adapter",
    "prompt",
    "like",
)
"""Keys of a tower that a copy of it does not take over."""


def _copied(values: object, name: object) -> str | None:
    """The other tower of the recipe that a tower's `like:` names."""
    towers = _towers(values)
    like = towers[name].get("like")
    return like if isinstance(like, str) and like in towers and like != name else None


def _copy_towers(document: Document) -> list[Problem]:
    """Give each `{like: TOWER}` the keys of that tower of the recipe, but for those of training.

    `like` stays, since the copy starts from the same random weights.
    """
    problems = []
    towers = _towers(document.value)
    for name, tower in towers.items():
        source = _copied(document.value, name) if isinstance(tower, Mapping) else None
        if source is None:
            continue
        original, path = towers[source], ("towers", name, "like")
        if not _has_source(original):
            text = f"tower '{source}' has no builder or run of its own. Name one that has."
            problems.append(Problem(path, text, about_value=False))
            continue
        for key in _SOURCES:
            if tower.get(key) is not None and tower[key] != original.get(key):
                text = f"a tower has one source, but this one has like and {key}. Remove one."
                problems.append(Problem(path[:2], text, about_value=False))
        taken = {key: value for key, value in original.items() if key not in _OF_TRAINING}
        named = [word for word in MODALITY_NAMES if word in source.lower().split("_")]
        if named and "modality" not in taken:
            taken["modality"] = named[0]
        towers[name] = {**deepcopy(taken), **tower}
    return problems


def _has_source(tower: object) -> bool:
    return isinstance(tower, Mapping) and any(tower.get(key) for key in ("builder", "run"))


def _scorers(values: object) -> list[object]:
    synthesis = values.get("synthesis") if isinstance(values, Mapping) else None
    scorers = synthesis.get("scorers") if isinstance(synthesis, Mapping) else None
    return scorers if isinstance(scorers, list) else []


def _scorer_of(like: object) -> Mapping[str, object]:
    if not isinstance(like, str):
        raise RecipeError(f"`like:` takes the name of a model, got {shown(like)}.")
    model = find_named_model(like)
    if not model.scorer:
        known = ", ".join(name for name, own in named_models().items() if own.scorer)
        raise RecipeError(f"'{like}' is not a scorer. Models that score pairs of texts: {known}.")
    return model.scorer


def _towers(values: object) -> dict[Any, Any]:
    towers = values.get("towers") if isinstance(values, Mapping) else None
    return towers if isinstance(towers, dict) else {}


def _section(name: str, tower: Mapping[str, object]) -> dict[str, object]:
    """The keys that a tower's `like:` expands to, those of the tower's modality."""
    like = tower["like"]
    if not isinstance(like, str):
        raise RecipeError(f"`like:` takes the name of a model, got {shown(like)}.")
    find_named_model(like)
    offered = sections_of(like)
    wanted = list(_wanted(name, tower))
    fitting = [modality for modality in wanted if modality in offered] if wanted else list(offered)
    if not fitting:
        raise RecipeError(
            f"'{like}' has {' and '.join(offered)} towers, no {wanted[0]} tower. Choose a model"
            f" for {wanted[0]} towers, or set `modality: {next(iter(offered))}`."
        )
    if len(fitting) > 1:
        raise RecipeError(
            f"'{like}' has {' and '.join(offered)} towers. Say"
            f" {' or '.join(f'`modality: {modality}`' for modality in fitting)}."
        )
    section = offered[fitting[0]]
    builds = attributes_of("builder", str(section["builder"]))["modalities"]
    # If neither the tower's name nor its builder determines the modality, the model does.
    return section if wanted or len(builds) == 1 else {**section, "modality": fitting[0]}


def _wanted(name: str, tower: Mapping[str, object]) -> Iterator[str]:
    """The modalities that a tower sets or has in its name."""
    if tower.get("modality") is not None:
        yield str(tower["modality"])
        return
    words = name.lower().split("_")
    yield from (word for word in MODALITY_NAMES if word in words)
