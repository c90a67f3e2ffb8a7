"""The models that builders know by name, remembered between calls: widths and sizes take seconds to find and change with a version only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import vlkd_cli
from vlkd_cli import catalog
from vlkd_cli.builders.cache import cache_folder

LIBRARIES = {
    "openclip": "open_clip_torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "huggingface": "transformers",
    "sbert": "sentence-transformers",
    "adapters": "adapters",
}
FIELDS = ("name", "builder", "modality", "width", "parameters", "image_size_px", "pretrained")


def rows_of(builder: str) -> list[dict[str, Any]]:
    """Every model of a builder, one row per tower, with the fields of `ModelInfo`; from the cache where this version is in it.

    Raises:
        MissingPackageError: the builder's library is not installed.
    """
    file = _file(builder)
    remembered = _read(file)
    if remembered is not None:
        return remembered
    rows = [dict(info._asdict()) for info in catalog.load("builder", builder).list_models()]
    # A folder that cannot be written to only costs time at the next call.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        os.replace(partial, file)
    return rows


def choose(rows: Sequence[dict[str, Any]], *, modality: str | None, pattern: str, pretrained: bool) -> list[dict[str, Any]]:
    """Rows of a modality whose name matches a glob pattern in upper or lower case (a bare word may stand anywhere in the name)."""
    wanted = pattern.lower() if any(letter in pattern for letter in "*?[") else f"*{pattern.lower()}*"
    return [
        row
        for row in rows
        if modality in (None, row["modality"]) and fnmatchcase(row["name"].lower(), wanted) and (row["pretrained"] or not pretrained)
    ]


def _file(builder: str) -> Path:
    try:
        version = importlib.metadata.version(LIBRARIES.get(builder, builder))
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    return cache_folder() / "listings" / f"{builder}-{version}-vlkd-{vlkd_cli.__version__}.json"


def _read(file: Path) -> list[dict[str, Any]] | None:
    """The remembered rows; None where there are none or they are damaged."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [{field: row[field] for field in FIELDS} for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return None
