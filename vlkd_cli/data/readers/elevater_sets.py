"""Facts of ELEVATER's 20 data sets, and the folder of a data set under a root folder.

`elevater_sets.json` holds names, folders, metrics, sizes and the classes in column order; the
prompt templates in it are vlkd's own. A root may bring its own `vision_datasets.json` (the registry
format of vision-datasets), which describes further data sets or other paths of the same ones.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from vlkd_cli.catalog import did_you_mean
from vlkd_cli.data.files.texts import kind_of, parse_json, read_file, text_of
from vlkd_cli.data.images.files import find_folders
from vlkd_cli.errors import DataError

Metric = Literal["accuracy", "mean-per-class", "11point_mAP", "roc_auc"]
REGISTRY = "vision_datasets.json"
GENERIC_TEMPLATES = (
    "a picture of a {}.",
    "an image that shows a {}.",
    "there is a {} in this picture.",
)


@dataclass(frozen=True)
class SplitFacts:
    """One part of a data set: its index file, the archives that the index points into, and how many
    images it lists (None: unknown)."""

    index: str
    archives: tuple[str, ...] = ()
    num_images: int | None = None


@dataclass(frozen=True)
class SetFacts:
    """What is known of a data set before its files are opened."""

    name: str
    """As a submission's `dataset_name` spells it."""
    folder: str
    """Below the root."""
    metric: Metric
    num_classes: int
    splits: Mapping[str, SplitFacts]
    multi_label: bool = False
    squash: bool = False
    """Images are resized to the tower's size without a crop."""
    label_map: str | None = None
    """File with one class name per line; None: the names are in the COCO index."""
    classes: tuple[str, ...] | None = None
    """Names in column order, where they are official."""
    templates: tuple[str, ...] = GENERIC_TEMPLATES
    title: str = ""
    config: str = ""
    official: bool = False
    """One of ELEVATER's 20."""
    is_registered: bool = False
    """Whether the root's own registry describes its files."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every spelling that finds it."""
        return tuple(
            word for word in (self.name, self.title, self.config, Path(self.folder).name) if word
        )


class Located(NamedTuple):
    """A data set on disk."""

    facts: SetFacts
    folder: Path
    layout: Literal["index", "folders"]
    """Index files (lines or COCO), or the Chinese-CLIP copy's `train|test/<class id>/` folders."""


@cache
def official_sets() -> dict[str, SetFacts]:
    """ELEVATER's 20 data sets by name, in the order of a submission."""
    text = (
        importlib.resources.files("vlkd_cli.data.readers")
        .joinpath("elevater_sets.json")
        .read_text(encoding="utf-8")
    )
    return {entry["name"]: _official(entry) for entry in json.loads(text)}


def _official(entry: dict[str, Any]) -> SetFacts:
    splits = {
        name: SplitFacts(split["index"], tuple(split["archives"]), split["num_images"])
        for name, split in entry["splits"].items()
    }
    return SetFacts(
        name=entry["name"],
        folder=entry["folder"],
        metric=entry["metric"],
        num_classes=len(entry["classes"]),
        splits=splits,
        multi_label=entry["multi_label"],
        squash=entry["squash"],
        label_map=entry["label_map"],
        classes=tuple(entry["classes"]),
        templates=tuple(entry["templates"]),
        title=entry["title"],
        config=entry["config"],
        official=True,
    )


def read_registry(path: Path) -> dict[str, SetFacts]:
    """The data sets that a `vision_datasets.json` describes; of several versions of a name, the
    newest.

    An official name retains its classes, metric and templates, and takes the registry's folder and
    files. Other data sets are scored by 11-point mAP if they are multi-label and by accuracy if
    not, unless the entry sets `metric`.

    Raises:
        DataError: the file is not such a registry.
    """
    try:
        entries = parse_json(read_file(path))
        newest = sorted(entries, key=lambda entry: int(entry.get("version", 0)))
        found = [_registered(entry) for entry in newest if _is_classification(entry)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: not a registry of data sets ({type(error).__name__}: {error}). Expected a"
            " list of entries with name, root_folder, type and splits."
        ) from error
    return {facts.name: facts for facts in found}


def _is_classification(entry: dict[str, Any]) -> bool:
    """Registries list data sets for detection, captions and the like too."""
    return text_of(entry["type"]).lower().startswith("classification")


def _registered(entry: dict[str, Any]) -> SetFacts:
    name, kind = text_of(entry["name"]), text_of(entry["type"])
    multi_label = "multilabel" in kind.replace("_", "").lower()
    splits = {
        split: _registered_split(part)
        for split in ("train", "val", "test")
        if (part := entry.get(split)) and part.get("index_path")
    }
    folder, label_map = _path_of(entry["root_folder"]), entry.get("labelmap")
    label_map = None if label_map is None else _path_of(label_map)
    known = official_sets().get(name)
    if known is not None:
        if multi_label != known.multi_label:
            expected = "multilabel" if known.multi_label else "multiclass"
            raise ValueError(f"type of '{name}' is '{kind}', and ELEVATER's set is {expected}")
        for key in ("num_classes", "metric"):
            if entry.get(key) not in (None, getattr(known, key)):
                raise ValueError(
                    f"{key} of '{name}' is {entry[key]!r}, and ELEVATER's set has"
                    f" {getattr(known, key)!r}"
                )
        return replace(known, folder=folder, label_map=label_map, splits=splits, is_registered=True)
    wanted = entry.get("metric") or ("11point_mAP" if multi_label else "accuracy")
    metric: Metric | None = next((each for each in get_args(Metric) if each == wanted), None)
    if metric is None:
        raise ValueError(f"metric of '{name}' is '{wanted}'; known: {', '.join(get_args(Metric))}")
    return SetFacts(
        name=name,
        folder=folder,
        metric=metric,
        num_classes=int(entry["num_classes"]),
        splits=splits,
        multi_label=multi_label,
        label_map=label_map,
        is_registered=True,
    )


def _registered_split(part: dict[str, Any]) -> SplitFacts:
    count = part.get("num_images")
    if not isinstance(count, int | None):
        raise ValueError(f"num_images is {kind_of(count)}, not an integer")
    archives = tuple(text_of(name) for name in part.get("files_for_local_usage") or ())
    return SplitFacts(_path_of(part["index_path"]), archives, count)


def _path_of(value: object) -> str:
    path = text_of(value)
    if "\0" in path or not path:
        raise ValueError(f"{path!r} is not a path")
    return path


def known_sets(root: Path | None = None) -> dict[str, SetFacts]:
    """The official data sets and those of the root's registry, which wins where both know a
    name."""
    found = dict(official_sets())
    if root is not None and (root / REGISTRY).is_file():
        found.update(read_registry(root / REGISTRY))
    return found


def find_set(name: str, sets: Mapping[str, SetFacts] | None = None) -> SetFacts:
    """The data set of a name, a title, a toolkit's config name or a folder's name, in any case.

    Raises:
        DataError: there is none; names the closest.
    """
    sets = official_sets() if sets is None else sets
    if name in sets:
        return sets[name]
    spellings = {
        alias.lower(): facts for facts in reversed(list(sets.values())) for alias in facts.aliases
    }
    if name.lower() in spellings:
        return spellings[name.lower()]
    raise DataError(
        f"unknown ELEVATER data set '{name}'.{did_you_mean(name, sets)} Known: {', '.join(sets)}."
    )


def locate(root: Path, name: str) -> Located:
    """The folder of a data set: by the root's registry, in its official folder, in a folder of its
    name, or as the root itself.

    Raises:
        DataError: the root or the data set is missing; names the expected folder.
    """
    if not root.is_dir():
        raise DataError(
            f"data root '{root}' is not a folder. Give the folder that holds 'classification/' or"
            " the data sets' own folders."
        )
    facts = find_set(name, known_sets(root))
    for folder in _candidates(root, facts):
        if (layout := _layout(folder, facts)) is not None:
            return Located(facts, folder, layout)
    raise DataError(
        f"data set '{facts.name}' is not under '{root}': put its index files and archives into"
        f" '{root / facts.folder}' (or the Chinese-CLIP copy, with train/ and test/, into"
        f" '{root / facts.name}')."
    )


def on_disk(root: Path) -> dict[str, Located]:
    """Every known data set that is under a root, in submission order, further ones of the
    registry last."""
    found = {}
    for name in known_sets(root):
        try:
            found[name] = locate(root, name)
        except DataError:
            if not root.is_dir():
                raise
    return found


def _candidates(root: Path, facts: SetFacts) -> list[Path]:
    names = dict.fromkeys((facts.folder, *facts.aliases))
    folders = [root / name for name in names] + [
        root / "classification" / name for name in facts.aliases
    ]
    return [*folders, root] if root.name in facts.aliases else folders


def _layout(folder: Path, facts: SetFacts) -> Literal["index", "folders"] | None:
    if not folder.is_dir():
        return None
    if any((folder / split.index).is_file() for split in facts.splits.values()):
        return "index"
    # Folders that all have the names of classes are an ordinary folder of images per class.
    parts = [folder / split for split in ("train", "test") if (folder / split).is_dir()]
    is_copy = any(name.isdecimal() for part in parts for name in find_folders(part))
    return "folders" if is_copy else None
