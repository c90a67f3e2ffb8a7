"""The data sets that vlkd knows by name: their classes, templates, sizes and metrics.
Torch-free."""

from __future__ import annotations

import importlib.resources
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from vlkd_cli.data.files.choices import WINOGROUND_FILE
from vlkd_cli.data.readers.elevater_sets import SetFacts, official_sets, on_disk

TORCHVISION = {
    "caltech101": ("Caltech101", "caltech101/101_ObjectCategories"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "country211": ("Country211", "country211"),
    "dtd": ("DTD", "dtd/dtd"),
    "eurosat": ("EuroSAT", "eurosat/2750"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST"),
    "fer2013": ("FER2013", "fer2013/*.csv"),
    "fgvc_aircraft": ("FGVCAircraft", "fgvc-aircraft-2013b"),
    "flowers102": ("Flowers102", "flowers-102"),
    "food101": ("Food101", "food-101"),
    "gtsrb": ("GTSRB", "gtsrb/GTSRB"),
    "imagenet1k": ("ImageNet", "meta.bin"),
    "mnist": ("MNIST", "MNIST"),
    "pcam": ("PCAM", "pcam/*.h5"),
    "pets": ("OxfordIIITPet", "oxford-iiit-pet"),
    "rendered_sst2": ("RenderedSST2", "rendered-sst2"),
    "stl10": ("STL10", "stl10_binary"),
    "sun397": ("SUN397", "SUN397"),
    "svhn": ("SVHN", "test_32x32.mat"),
}
"""vlkd's name of a data set: torchvision's class, and what that class stores below its root, which
a folder of images per class does not have."""
_UNNAMED = ("fer2013", "gtsrb", "pcam", "svhn")
"""Sets whose classes torchvision does not name."""
_FER2013_LABELS = (0, 1, 2, 3, 5, 6, 4)
"""The labels in the file of FER2013, where neutral is the last; folders are in alphabetical
order."""
_MULTILINGUAL = ("captions.jsonl", "test_image_names.txt", "XTD10/test_image_names.txt")
_LABELED_COPY = ("classnames.txt", "dataset_type.txt")


class KnownSet(NamedTuple):
    """What is known of a data set. Sizes are of ELEVATER's copy where it has one; None is unknown
    or not there."""

    name: str
    task: str
    classes: int | None
    train: int | None
    val: int | None
    test: int | None
    metric: str
    elevater: str | None
    """ELEVATER's name of it."""
    torchvision: str | None
    """The class of torchvision.datasets that reads it."""


class Found(NamedTuple):
    """Where a data set lies, and in which layout: elevater, torchvision, clip_benchmark, choices,
    multilingual or folder."""

    layout: str
    path: Path
    facts: KnownSet | None = None
    """The entry of the root's own registry for a set that vlkd does not know."""


@cache
def load_templates() -> dict[str, list[str]]:
    """The template sets that vlkd brings along, by data set."""
    return dict(packaged("templates.json"))


@cache
def load_classes() -> dict[str, list[str]]:
    """Class names of common data sets in their label order."""
    return dict(packaged("classes.json"))


def known_as(dataset: str) -> str:
    """A data set's name in vlkd's own lists: lower case, with underscores, whatever copy it is
    of."""
    plain = dataset.lower().replace("-", "_").replace(" ", "_").replace("/", "_")
    return str(packaged("aliases.json").get(plain, plain))


def known_sets() -> dict[str, KnownSet]:
    """Every data set that vlkd knows, by vlkd's name: ELEVATER's 20 first."""
    found: dict[str, KnownSet] = {}
    for official in official_sets().values():
        name = known_as(official.name)
        found[name] = _elevater(name, official)
    for name, facts in packaged("datasets.json").items():
        torchvision = TORCHVISION[name][0] if name in TORCHVISION else None
        found[name] = KnownSet(
            name,
            facts["task"],
            facts.get("classes"),
            facts.get("train"),
            facts.get("val"),
            facts.get("test"),
            facts["metric"],
            None,
            torchvision,
        )
    return found


def sets_on_disk(root: Path) -> dict[str, Found]:
    """What lies under a data root, by vlkd's names where they are known and by the folder's name
    where not."""
    found: dict[str, Found] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if is_webdataset_copy(folder):
            found[known_as(folder.name.removeprefix("wds_"))] = Found("clip_benchmark", folder)
        elif (pairs := _winoground(folder)) is not None:
            found[folder.name] = Found("choices", pairs.parent)
        elif is_multilingual(folder):
            found[known_as(folder.name)] = Found("multilingual", folder)
    for name, located in on_disk(root).items():
        found.setdefault(
            known_as(name),
            Found("elevater", located.folder, _elevater(known_as(name), located.facts)),
        )
    for name in TORCHVISION:
        if (content := torchvision_content(root, name)) is not None:
            found.setdefault(name, Found("torchvision", content))
    for name in (
        *packaged("collections.json")["sugar_crepe"],
        *packaged("collections.json")["aro"],
    ):
        if (file := choice_file(root, name)) is not None:
            found.setdefault(name, Found("choices", file))
    seen = {entry.path for entry in found.values()}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder not in seen and known_as(folder.name) in known_sets():
            found.setdefault(known_as(folder.name), Found("folder", folder))
    return found


def torchvision_content(root: Path, known: str) -> Path | None:
    """What torchvision's class of a set stores below a root, where it is there."""
    if known not in TORCHVISION:
        return None
    return next(iter(sorted(root.glob(TORCHVISION[known][1]))), None)


def torchvision_keys(known: str) -> dict[str, object]:
    """The keys of reader classification for a set of torchvision: its class, and names of its
    classes where torchvision has none."""
    keys: dict[str, object] = {"dataset": TORCHVISION[known][0]}
    if known in _UNNAMED:
        names = load_classes()[known]
        is_fer = known == "fer2013"
        keys["classes"] = [names[label] for label in _FER2013_LABELS] if is_fer else names
    return keys


def is_webdataset_copy(folder: Path) -> bool:
    """Whether a folder has CLIP_benchmark's webdataset layout."""
    return any((folder / mark).is_file() for mark in _LABELED_COPY)


def is_multilingual(folder: Path) -> bool:
    """Whether a folder has the layout of XTD or Crossmodal-3600."""
    return any((folder / mark).is_file() for mark in _MULTILINGUAL)


def choice_file(root: Path, dataset: str) -> Path | None:
    """The file of a set of right and wrong captions: `FOLDER/STEM`, or Winoground's folder."""
    folder, _, stem = dataset.rpartition("/")
    published = packaged("aro.json")["files"].get(dataset)
    stems = [stem] if published is None else [stem, published]
    candidates = [
        root / folder / inner / f"{each}{ending}"
        for each in stems
        for inner in ("", "data")
        for ending in (".json", ".jsonl")
    ]
    found = next((path for path in candidates if path.is_file()), None)
    return found or _winoground(root / dataset)


def _winoground(folder: Path) -> Path | None:
    """Winoground's file in its folder, or in `data` of its repository."""
    files = (folder / inner / WINOGROUND_FILE for inner in ("", "data"))
    return next((path for path in files if path.is_file()), None)


def _elevater(name: str, facts: SetFacts) -> KnownSet:
    train, val, test = (
        facts.splits[split].num_images if split in facts.splits else None
        for split in ("train", "val", "test")
    )
    return KnownSet(
        name,
        "multi-label" if facts.multi_label else "classification",
        facts.num_classes,
        train,
        val,
        test,
        facts.metric,
        facts.name,
        TORCHVISION[name][0] if name in TORCHVISION else None,
    )


@cache
def packaged(file: str) -> dict[str, Any]:
    """A JSON file of names that comes with vlkd."""
    text = (
        importlib.resources.files("vlkd_cli.evaluation.datasets")
        .joinpath("names", file)
        .read_text(encoding="utf-8")
    )
    found: dict[str, Any] = json.loads(text)
    return found
