"""Find weights on disk: paths, folders, installed packages, and the errors when they are
missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vlkd_cli.builders.on_disk import SUFFIXES
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import WeightsError

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
    "model.pth",
    "model.pt",
)


def is_local(source: str) -> bool:
    """Whether a `pretrained:` or `model:` value is a file or folder here rather than a tag or hub
    id."""
    return (
        Path(source).expanduser().exists()
        or source.startswith((".", "/", "~"))
        or Path(source).suffix in SUFFIXES
    )


def locate(source: str, what: str) -> Path:
    """The file or folder that a recipe names by path, or the model folder inside an installed
    package (`package:NAME`).

    Raises:
        WeightsError: it is not there.
    """
    if source.startswith("package:"):
        return _folder_in_package(source.removeprefix("package:"), what)
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightsError(
            f"{what}: no file or folder '{source}'. Put the weights there or correct the path."
        )
    return path


def _folder_in_package(package: str, what: str) -> Path:
    # find_spec of a top-level package runs none of its code.
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise WeightsError(
            f"{what}: no installed package '{package}'. Install the package that carries the model."
        )
    root = Path(next(iter(found.submodule_search_locations)))
    for marker in ("modules.json", "config.json"):
        folders = sorted(
            (path.parent for path in root.rglob(marker)),
            key=lambda folder: (len(folder.parts), str(folder)),
        )
        if folders:
            return folders[0]
    raise WeightsError(
        f"{what}: package '{package}' carries no model (no modules.json or config.json in it)."
    )


def weights_file(path: Path, what: str) -> Path:
    """The weights file that a path means: itself, or the one inside a folder.

    Raises:
        WeightsError: the folder holds none.
    """
    if path.is_file():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    others = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(others) == 1:
        return others[0]
    if others:
        raise WeightsError(
            f"{what}: '{path}' holds several weights ({', '.join(file.name for file in others)})."
            " Name one of the files."
        )
    raise WeightsError(
        f"{what}: '{path}' holds no weights. Put {WEIGHT_FILES[3]} or {WEIGHT_FILES[4]} into it."
    )


def unfetchable(
    what: str, *, files: str, folder: Path, error: BaseException | None = None
) -> WeightsError:
    """The one line for weights that are neither on disk nor to be had."""
    reason = f" ({first_line(error)})" if error is not None else ""
    return WeightsError(
        f"{what}: weights are not on disk and cannot be fetched{reason}. Put {files} into {folder}."
    )
