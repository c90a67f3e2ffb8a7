"""Where a data set that a suite names lies below a data root, and in which of the known layouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.data.images.files import SUFFIXES, is_data, suffix_of
from vlkd_cli.data.readers.elevater_sets import find_set, known_sets, locate
from vlkd_cli.data.readers.multilingual import languages_of
from vlkd_cli.data.readers.objectnet import FOLDERS
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.datasets.known_sets import (
    TORCHVISION,
    choice_file,
    is_multilingual,
    is_webdataset_copy,
    known_as,
    sets_on_disk,
    torchvision_content,
    torchvision_keys,
)

SPLIT_FOLDERS = {"test": ("test",), "val": ("val", "valid", "validation")}
"""Parts that are measured, by the names of their folders."""


def found_by_name(keys: Mapping[str, object], root: Path | None) -> dict[str, object]:
    """The keys of a reader for `{dataset: NAME, split: ...}`.

    Tried in turn below the root: a webdataset copy of CLIP_benchmark (`wds_NAME` or `NAME`, however
    it is spelled), ELEVATER's layout, torchvision's folders, a file of right and wrong captions
    (`FOLDER/STEM`), a folder of images per class. A class of torchvision.datasets is taken by its
    own name where nothing lies below the root.

    Raises:
        DataError: there is no such data set; names the paths that were tried.
    """
    given = dict(keys)
    dataset = str(given.pop("dataset", ""))
    if not dataset:
        raise DataError(
            "data: set 'reader', or 'dataset' to the name of a data set below --data ROOT."
        )
    known = known_as(dataset)
    if root is not None:
        if (copy := _webdataset_copy(root, dataset)) is not None:
            return {"reader": "clip_benchmark", "path": str(copy), **given}
        elevater = _elevater_name(root, dataset)
        if elevater is not None:
            return {
                "reader": "elevater",
                "root": str(root),
                "dataset": elevater,
                **({"split": "test"} | given),
            }
        if torchvision_content(root, known) is not None:
            return {
                "reader": "classification",
                "root": str(root),
                **torchvision_keys(known),
                **({"split": "test"} | given),
            }
        if (choices := choice_file(root, dataset)) is not None:
            return {"reader": "choices", "path": str(choices), **given}
        if (captioned := _multilingual(root, dataset)) is not None:
            return {**captioned, **given}
        for folder in _folders_called(root, dataset):
            if known == "objectnet":
                return {"reader": "objectnet", "path": str(folder), **given}
            folder = _unpacked(folder)
            return {
                "reader": "classification",
                "path": str(folder),
                **_part_of(folder),
                **given,
            }
        raise DataError(
            f"data set '{dataset}' is not under '{root}'. `vlkd list-datasets --data {root}` shows"
            " what is, and what is known."
        )
    if "/" in dataset or Path(dataset).suffix:
        raise DataError(
            f"data '{dataset}': no such file or folder. Names of data sets are looked up below"
            " --data ROOT."
        )
    torchvision = torchvision_keys(known) if known in TORCHVISION else {"dataset": dataset}
    return {"reader": "classification", **torchvision, **given}


def found_alone(root: Path | None) -> dict[str, object]:
    """The keys of a reader for the one data set that a folder is or holds.

    Raises:
        DataError: there is no folder, nothing in it, or several data sets.
    """
    if root is None:
        raise DataError(
            "this suite has no data to measure. Give `data: {reader: ..., split: val}`, or a folder"
            " with --data."
        )
    if is_webdataset_copy(root):
        return {"reader": "clip_benchmark", "path": str(root)}
    found = sets_on_disk(root)
    if len(found) == 1:
        return {"dataset": next(iter(found))}
    if found:
        shown = ", ".join(list(found)[:20]) + (", ..." if len(found) > 20 else "")
        raise DataError(
            f"--data {root} holds {len(found)} data sets: {shown}. Choose one with --with"
            " data=NAME."
        )
    if (root / "mappings" / FOLDERS).is_file():
        return {"reader": "objectnet", "path": str(root)}
    if is_multilingual(root):
        return {"reader": "multilingual", "path": str(root)}
    if part := _part_of(root):
        return {"reader": "classification", "path": str(root), **part}
    folders = sorted(path for path in root.iterdir() if path.is_dir() and is_data(path.name))
    if _holds_classes(root):
        return {"reader": "classification", "path": str(root)}
    there = ", ".join(path.name for path in folders[:20]) or "none"
    raise DataError(
        f"--data {root} holds no data set that is recognized, and no class folders with images."
        f" Folders there: {there}. Choose one with --with data=NAME, or describe it with"
        " --with 'data={reader: ...}'."
    )


def _webdataset_copy(root: Path, dataset: str) -> Path | None:
    """The webdataset copy of this name, else one of another spelling: CLIP_benchmark writes
    `wds_imagenet-a` and `wds_mscoco_captions`."""
    known = known_as(dataset)
    named = [root / name for name in (f"wds_{dataset}", dataset, f"wds_{known}", known)]
    others = sorted(root.iterdir()) if root.is_dir() else []
    named += [path for path in others if known_as(path.name.removeprefix("wds_")) == known]
    return next((path for path in named if is_webdataset_copy(path)), None)


def _multilingual(root: Path, dataset: str) -> dict[str, object] | None:
    """The keys of captions in many languages, `FOLDER` or `FOLDER/LANGUAGE`."""
    name, _, language = dataset.partition("/")
    for folder in _folders_called(root, name):
        if is_multilingual(folder) and (not language or language in languages_of(folder)):
            keys: dict[str, object] = {"reader": "multilingual", "path": str(folder)}
            return {**keys, "language": language} if language else keys
    return None


def _folders_called(root: Path, dataset: str) -> list[Path]:
    """The folder of this name, else those of another spelling of it."""
    known = known_as(dataset)
    named = [root / name for name in (dataset, known) if (root / name).is_dir()]
    if named or not root.is_dir():
        return named
    return [
        path for path in sorted(root.iterdir()) if path.is_dir() and known_as(path.name) == known
    ]


def _unpacked(folder: Path) -> Path:
    """The folder of the classes where an archive was unpacked into a folder of the same meaning:
    `imagenetv2/ImageNetV2-matched-frequency`, `imagenet_sketch/sketch`."""
    known = known_as(folder.name)
    inside = [path for path in folder.iterdir() if path.is_dir() and known_as(path.name) == known]
    return inside[0] if len(inside) == 1 and _holds_classes(inside[0]) else folder


def name_of_path(value: str) -> str:
    """What data is called by its path: the name of the folder, or of the file without its
    suffix."""
    path = Path(value)
    return (path.name if path.expanduser().is_dir() else path.stem) or value


def _part_of(folder: Path) -> dict[str, str]:
    """`{split: ...}` of the part that is measured, where a folder of images has parts."""
    inside = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    for split, names in SPLIT_FOLDERS.items():
        found = next((inside[name] for name in names if name in inside), None)
        if found is not None and _holds_classes(found):
            return {"split": split}
    return {}


def _holds_classes(folder: Path) -> bool:
    """Whether some sub-folder holds an image."""
    inside = (path for path in folder.iterdir() if path.is_dir() and is_data(path.name))
    return any(
        suffix_of(file.name) in SUFFIXES and is_data(file.name)
        for path in inside
        for file in path.iterdir()
    )


def _elevater_name(root: Path, dataset: str) -> str | None:
    """ELEVATER's name of a data set, if it lies below the root in that layout."""
    if not root.is_dir():
        raise DataError(f"data root '{root}' is not a folder.")
    try:
        facts = find_set(dataset, known_sets(root))
    except DataError:
        return None
    try:
        locate(root, facts.name)
    except DataError:
        return None
    return facts.name
