"""Class names and prompt templates: from the data, a file, an installed package, or the sets that
vlkd brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import (
    clean_text,
    entries_of,
    kind_of,
    parse_json,
    read_text,
    text_of,
)
from vlkd_cli.data.readers.classification import Classification
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError, MissingPackageError
from vlkd_cli.evaluation.datasets.dataset import Dataset
from vlkd_cli.evaluation.datasets.known_sets import (
    known_as,
    load_classes,
    load_templates,
    packaged,
)
from vlkd_cli.recipe.types import DataSource

GENERIC = "photo"
"""The template set for data that no set is made for."""

PromptSource = Sequence[str] | Mapping[str, Sequence[str]]


def class_names(reader: Reader, chosen: str | Sequence[str] | None, dataset: str) -> list[str]:
    """Names of the classes in label order.

    Args:
        reader: the data, whose own names are the default.
        chosen: a list, a file (one name per line, or a JSON list), `open_clip:imagenet`,
            `clip_benchmark[:SET]`, or a built-in set.
        dataset: name of the data, for sets that are looked up by it.

    Raises:
        DataError: there are none, or their number differs from the reader's.
    """
    own = list(reader.classes or ())
    if chosen is None:
        if own:
            return own
        raise DataError(
            f"data '{dataset}' has no class names. Give `classes:` a file with one name per line."
        )
    names = named_classes_of(chosen, dataset)
    if own and len(names) != len(own):
        raise DataError(
            f"classes '{chosen}': {len(names)} names for data '{dataset}', which has {len(own)}"
            " classes."
        )
    if own != names and sorted(own) == sorted(names):
        raise DataError(
            f"classes '{chosen}': the names of data '{dataset}' in another order than its labels."
            " Leave `classes:` out."
        )
    return names


def prompts(
    names: Sequence[str], reader: Reader, chosen: str | Sequence[str] | None, dataset: str
) -> list[list[str]]:
    """The prompts of every class, in class order.

    Args:
        names: the class names.
        reader: the data, whose own templates come first.
        chosen: a list of templates, a file (one template per line; a JSON list; or a JSON object
            class -> prompts), `open_clip:imagenet`, `open_clip:simple`, `clip_benchmark[:SET]`, or
            a built-in set.
        dataset: name of the data, for sets that are looked up by it.

    Raises:
        DataError: a template has no field for the class name, or a class has no prompts.
    """
    source: PromptSource
    if chosen is None:
        built_in = load_templates()
        source = list(reader.templates or ()) or built_in.get(_set_for(dataset), built_in[GENERIC])
    else:
        source = _named_templates(chosen, dataset) if isinstance(chosen, str) else list(chosen)
    if isinstance(source, Mapping):
        return [_own_prompts(source, name, chosen) for name in names]
    if not source:
        raise DataError(f"templates '{chosen}': the list is empty.")
    return [[fill(template, name) for template in source] for name in names]


def names_of(dataset: Dataset, chosen: str | Sequence[str] | None, data: DataSource) -> list[str]:
    """`class_names`; a well-known data set whose files have no readable names gets those that vlkd
    knows.

    Args:
        data: the suite's `data:` key.
    """
    if chosen is None and _left_to_us(dataset, data, "classes"):
        known = known_as(dataset.name)
        own = dataset.reader.classes or ()
        ours = load_classes().get(known, [])
        if known == "imagenet1k" and len(own) == 1000:
            chosen = "open_clip:imagenet"
        elif len(ours) == len(own) and set(ours) != set(own):
            chosen = ours
    return class_names(dataset.reader, chosen, dataset.name)


def prompts_of(
    dataset: Dataset, names: Sequence[str], chosen: str | Sequence[str] | None, data: DataSource
) -> list[list[str]]:
    """`prompts`; a well-known data set gets the templates that vlkd has for it."""
    if (
        chosen is None
        and _left_to_us(dataset, data, "templates")
        and _set_for(dataset.name) in load_templates()
    ):
        chosen = _set_for(dataset.name)
    return prompts(names, dataset.reader, chosen, dataset.name)


def _set_for(dataset: str) -> str:
    """The name of the template set for a data set; variants of ImageNet have its own."""
    known = known_as(dataset)
    variants = packaged("collections.json")["imagenet_robustness"]
    is_variant = known in variants or known.startswith("imagenetv2_")
    return "imagenet1k" if is_variant else known


def _left_to_us(dataset: Dataset, data: DataSource, key: str) -> bool:
    """Whether a data set is named, and read by the reader that knows names only as they appear in
    the files; those of other readers are the data's own."""
    if not isinstance(dataset.reader, Classification):
        return False
    if isinstance(data, str) or data is None:
        return isinstance(data, str)
    return key not in data and "dataset" in data


def fill(template: str, name: str) -> str:
    """A template with the class name in its `{}` (or `{c}`, as CLIP_benchmark writes it)."""
    for field in ("{}", "{c}"):
        if field in template:
            return template.replace(field, name)
    raise DataError(f"template '{template}' has no {{}} for the class name.")


def _named_templates(chosen: str, dataset: str) -> PromptSource:
    if Path(chosen).is_file():
        return _from_file(Path(chosen))
    package, _, which = chosen.partition(":")
    if package == "open_clip":
        open_clip = _package("open_clip", chosen)
        sets: dict[str, list[Any]] = {
            "imagenet": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        }
        if (which or "imagenet") not in sets:
            raise DataError(f"templates '{chosen}': open_clip has the sets {', '.join(sets)}.")
        return [template("{}") for template in sets[which or "imagenet"]]
    if package == "clip_benchmark":
        found: PromptSource = _clip_benchmark(
            "en_zeroshot_classification_templates.json", which or dataset, chosen
        )
        return found
    if chosen in load_templates():
        return load_templates()[chosen]
    known = [*sorted(load_templates()), "open_clip:imagenet", "open_clip:simple", "clip_benchmark"]
    raise DataError(
        f"templates '{chosen}': neither a file nor a set.{did_you_mean(chosen, known)} Sets:"
        f" {', '.join(known)}."
    )


def named_classes_of(chosen: str | Sequence[str], dataset: str) -> list[str]:
    """Class names as given, or those of a file or a named set.

    Raises:
        DataError: it is neither a file nor a set.
    """
    if not isinstance(chosen, str):
        return list(chosen)
    if Path(chosen).is_file():
        found = _from_file(Path(chosen))
        if isinstance(found, Mapping):
            raise DataError(f"{chosen}: class names are a list, and this is an object.")
        return list(found)
    package, _, which = chosen.partition(":")
    if package == "open_clip":
        return list(_package("open_clip", chosen).IMAGENET_CLASSNAMES)
    if package == "clip_benchmark":
        return list(_clip_benchmark("en_classnames.json", which or dataset, chosen))
    if known_as(chosen) in load_classes():
        return load_classes()[known_as(chosen)]
    known = sorted(load_classes())
    raise DataError(
        f"classes '{chosen}': neither a file nor a set.{did_you_mean(chosen, known)} Sets:"
        f" {', '.join(known)}."
    )


def _own_prompts(source: Mapping[str, Sequence[str]], name: str, chosen: object) -> list[str]:
    own = list(source.get(name, ()))
    if not own:
        raise DataError(
            f"templates '{chosen}': class '{name}' has no prompts.{did_you_mean(name, source)}"
        )
    return [prompt.replace("{}", name).replace("{c}", name) for prompt in own]


def _from_file(path: Path) -> list[str] | dict[str, list[str]]:
    text = read_text(path)
    if path.suffix.lower() != ".json":
        return entries_of(text)
    try:
        found = parse_json(text)
        if isinstance(found, dict):
            return {clean_text(name): _texts(own) for name, own in found.items()}
        if isinstance(found, list):
            return [text_of(entry) for entry in found]
    except ValueError as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Expected a JSON list of strings, or an object of"
            " such lists."
        ) from None
    raise DataError(f"{path}: expected a JSON list or object, not {kind_of(found)}.")


def _texts(value: object) -> list[str]:
    return [text_of(entry) for entry in (value if isinstance(value, list) else [value])]


def _clip_benchmark(file: str, dataset: str, chosen: str) -> Any:
    package = _package("clip_benchmark", chosen)
    path = Path(package.__file__).parent / "datasets" / file
    sets = json.loads(path.read_text(encoding="utf-8"))
    named = {known_as(name): name for name in sets} | {name: name for name in sets}
    for name in (dataset, known_as(dataset), known_as(dataset).replace("_", "")):
        if name in named:
            return sets[named[name]]
    raise DataError(
        f"'{chosen}': clip_benchmark has no set '{dataset}'.{did_you_mean(dataset, sets)} Sets:"
        f" {', '.join(sorted(sets))}."
    )


def _package(name: str, chosen: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"'{chosen}'", "dev") from error
