"""The models that builders know by name, remembered between calls: widths and sizes take seconds to
find and change with a version only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypedDict

import vlkd_cli
from vlkd_cli import catalog
from vlkd_cli.builders.huggingface import known
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.whole_file import whole_file

LIBRARIES = {
    "openclip": "open_clip_torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "huggingface": "transformers",
    "sbert": "sentence-transformers",
    "adapters": "adapters",
}
SHIPPED = Path(__file__).parent / "listings"
FIELDS = ("name", "builder", "modality", "width", "parameters", "image_size_px", "pretrained")


class ModelRow(TypedDict):
    """A row of `vlkd list-models`: the fields of `ModelInfo`."""

    name: str
    builder: str
    modality: ModalityName
    width: int | None
    parameters: int | None
    image_size_px: int | None
    pretrained: Sequence[str]


def rows_of(builder: str) -> list[ModelRow]:
    """Every model of a builder, one row per tower, with the fields of `ModelInfo`; from the cache
    where this version is in it.

    The pinned versions of openclip, timm and torchvision are answered from `listings/`, which
    `write_shipped` filled. With others,
    widths and sizes that take minutes to find stay empty: the model of a name may have changed.

    Raises:
        MissingPackageError: the builder's library is not installed.
    """
    if builder == "huggingface":
        return _of_transformers()
    file = _file(builder)
    for place in (shipped(builder), file):
        remembered = _read(place)
        if remembered is not None:
            return remembered
    rows = computed(builder)
    # A folder that cannot be written to only costs time at the next call.
    with contextlib.suppress(OSError):
        with whole_file(file) as partial:
            _write(partial, rows)
    return rows


def _of_transformers() -> list[ModelRow]:
    """The types of transformers' encoders, then the models that are on disk."""
    modalities: tuple[ModalityName, ...] = ("image", "text")
    rows = [
        _row(name, "huggingface", modality)
        for modality in modalities
        for name in known.types_of(modality)
    ]
    return rows + [
        _row(name, "huggingface", modality, width, None, size_px, [known.ON_DISK])
        for modality in modalities
        for name, width, size_px in known.on_disk(modality)
    ]


def computed(builder: str) -> list[ModelRow]:
    """The rows as the builder lists them, which may take seconds."""
    return [_row(*info) for info in catalog.load("builder", builder).list_models()]


def measured(builder: str, rows: Sequence[ModelRow]) -> list[ModelRow]:
    """Those of the computed rows that can be towers, each model built once without memory; a second
    or less for each."""
    from vlkd_cli.builders.backbone import ModelInfo

    kind = catalog.load("builder", builder)
    found = [kind.measured(ModelInfo(**row)) for row in rows]
    return [_row(*info) for info in found if info is not None]


def shipped(builder: str) -> Path:
    """The file of the package with the rows of the installed version; it may not exist."""
    return SHIPPED / f"{builder}-{_version(builder).partition('+')[0]}.json"


def write_shipped(builder: str) -> Path:
    """Measure the rows of the installed version and write them into the package; for anyone who
    raises a pin."""
    file = shipped(builder)
    file.parent.mkdir(exist_ok=True)
    _write(file, measured(builder, computed(builder)))
    return file


def choose(
    rows: Sequence[ModelRow], *, modality: str | None, pattern: str, pretrained: bool
) -> list[ModelRow]:
    """Rows of a modality whose name matches a glob pattern in upper or lower case (a bare word
    matches anywhere in the name)."""
    return [
        row
        for row in rows
        if modality in (None, row["modality"])
        and matches(row["name"], pattern)
        and (row["pretrained"] or not pretrained)
    ]


def matches(name: str, pattern: str) -> bool:
    """Whether a name matches a glob pattern, see `choose`."""
    wanted = pattern if any(letter in pattern for letter in "*?[") else f"*{pattern}*"
    return fnmatchcase(name.lower(), wanted.lower())


def _file(builder: str) -> Path:
    return (
        cache_folder()
        / "model_rows"
        / f"{builder}-{_version(builder)}-vlkd-{vlkd_cli.__version__}.json"
    )


def _version(builder: str) -> str:
    try:
        return importlib.metadata.version(LIBRARIES.get(builder, builder))
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _read(file: Path) -> list[ModelRow] | None:
    """The remembered rows; None where there are none or they are damaged."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [_row(*row) for row in rows if len(row) == len(FIELDS)]
    except (OSError, ValueError, TypeError):
        return None


def _row(
    name: str,
    builder: str,
    modality: ModalityName,
    width: int | None = None,
    parameters: int | None = None,
    image_size_px: int | None = None,
    pretrained: Sequence[str] = (),
) -> ModelRow:
    return {
        "name": name,
        "builder": builder,
        "modality": modality,
        "width": width,
        "parameters": parameters,
        "image_size_px": image_size_px,
        "pretrained": list(pretrained),
    }


def _write(file: Path, rows: Sequence[ModelRow]) -> None:
    """One row on a line, its values in the order of FIELDS."""
    lines = ",\n".join(json.dumps(list(row.values()), separators=(",", ":")) for row in rows)
    file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
