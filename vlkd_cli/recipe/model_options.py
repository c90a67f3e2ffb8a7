"""What can be set on a tower of a model by name: the page of `vlkd show model NAME`, from the
signatures of its builder, the poolers, heads and augmentations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from vlkd_cli import catalog
from vlkd_cli.recipe.key_rows import key_rows
from vlkd_cli.recipe.messages import shown
from vlkd_cli.recipe.modality import FACTS, has_views, is_named
from vlkd_cli.recipe.named_models import NamedModel, named_models, sections_of
from vlkd_cli.recipe.params import attributes_of, signature_of
from vlkd_cli.recipe.schema import ScorerSpec, TowerSpec
from vlkd_cli.recipe.shape import section_keys
from vlkd_cli.recipe.types import ModalityName

_OF_EVERY_TOWER = ("train", "lr", "layer_decay", "cache")


def list_model_options(name: str) -> dict[str, Any]:
    """What a model is, and every key that can be set on its towers.

    Args:
        name: of `vlkd list-models --task`, or BUILDER:MODEL[:PRETRAINED].

    Returns:
        `name`, `tasks`, `about`, `missing` (what it needs that this version of vlkd does not have,
        else ""), `towers` (by modality, the keys that the name expands to), `scorer` (the same of
        a model that scores pairs) and `options`, a list of mappings with `key`, `type`, `default`,
        `meaning` and `towers`, the modalities that have it. Keys are those of the tower's section,
        or of the entry of `synthesis.scorers`; `data.augment` is one of the data.

    Raises:
        RecipeError: there is no such model.
    """
    model = named_models().get(name)
    if model is None:
        model = NamedModel(name, (), "", sections_of(name), "")
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for modality, section in model.towers.items():
        if section["builder"] not in catalog.names("builder"):
            continue
        for row in _options(modality, section, model.architecture):
            found.setdefault(row, []).append(modality)
    if model.scorer:
        found |= {row: [] for row in _scorer_options(model.scorer)}
    return {
        "name": model.name,
        "tasks": list(model.tasks),
        "about": model.about,
        "missing": model.missing,
        "towers": {modality: dict(section) for modality, section in model.towers.items()},
        "scorer": dict(model.scorer),
        "options": [
            {**dict(zip(("key", "type", "default", "meaning"), row, strict=True)), "towers": towers}
            for row, towers in found.items()
        ],
    }


def section_text(section: Mapping[str, object]) -> str:
    """A tower's section as one line of YAML."""
    text = yaml.safe_dump(section, default_flow_style=True, sort_keys=False, width=10_000)
    return str(text).strip()


def _options(
    modality: ModalityName, section: Mapping[str, object], architecture: str
) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key of a tower of the model; keys that the name sets
    have its values as defaults."""
    builder = str(section["builder"])
    signature = signature_of("builder", builder)
    of_modality = signature.attributes.get("keys_of_modality", {})
    others = {key for word, keys in of_modality.items() if word != modality for key in keys}
    for name, kind, default, meaning in key_rows(signature.keys):
        if name not in others:
            yield name, kind, shown(section[name]) if name in section else default, meaning
    poolers = list(_poolers(modality, builder, architecture))
    yield "pooler", _one_of(poolers), "the model's own", "how tokens become one feature"
    for pooler in poolers:
        for name, kind, default, meaning in key_rows(signature_of("pooler", pooler).keys):
            if (pooler, name) == ("gem", "eps") and architecture != "cnn":
                meaning += " Tokens of transformers have both signs; what is below counts as eps."
            yield f"pooler.{name}", kind, default, f"of pooler {pooler}: {meaning}"
    head = shown(section["head"]) if "head" in section else "null"
    about = "what projects the feature; `vlkd show head NAME` has its keys"
    yield "head", _one_of(catalog.names("head")), head, about
    yield from key_rows([key for key in section_keys(TowerSpec) if key.name in _OF_EVERY_TOWER])
    if has_views(modality):
        yield from _augment_options(modality)


def _augment_options(modality: ModalityName) -> Iterator[tuple[str, str, str, str]]:
    """How samples are augmented in training, with the keys of the usual augmentation."""
    usual, read = FACTS[modality].augment, FACTS[modality].plural
    fitting = [
        name
        for name in catalog.names("augment")
        if attributes_of("augment", name).get("modality") in (None, modality)
    ]
    about = f"how {read} are augmented in training; `vlkd show augment NAME` has the keys of each"
    yield "data.augment", _one_of(fitting), usual, about
    for name, kind, default, meaning in key_rows(signature_of("augment", usual).keys):
        yield f"data.augment.{name}", kind, default, f"of augment {usual}: {meaning}"


def _scorer_options(scorer: Mapping[str, object]) -> Iterator[tuple[str, str, str, str]]:
    section = [key for key in section_keys(ScorerSpec) if key.name != "name"]
    for name, kind, default, meaning in key_rows(
        [*signature_of("scorer", str(scorer["name"])).keys, *section]
    ):
        yield name, kind, shown(scorer[name]) if name in scorer else default, meaning


def _poolers(modality: ModalityName, builder: str, architecture: str) -> Iterator[str]:
    """The poolers that such a model takes."""
    for name in catalog.names("pooler"):
        attributes = attributes_of("pooler", name)
        marks_ends = is_named(modality) and builder == "openclip"
        has_class = (
            FACTS[modality].has_pixels and architecture != "cnn"
            if has_views(modality)
            else is_named(modality) and not attributes["takes_prefix"]
        )
        if (marks_ends or not attributes["needs_eot"]) and (
            has_class or not attributes["needs_class_token"]
        ):
            yield name


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}, with keys as {{name: ..., ...}}"
