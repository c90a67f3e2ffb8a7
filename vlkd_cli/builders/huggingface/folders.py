"""Model folders of transformers: where they are, and what is refused in them before any library
opens them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.builders.hub import prepare_hub
from vlkd_cli.builders.places import is_local, locate, unfetchable
from vlkd_cli.builders.weight_files import check_file, first_line
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.errors import RecipeError, WeightsError

RUNS_CODE = ("auto_map", "_attn_implementation_internal")
"""Keys of a configuration that have code fetched and run."""
MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.model", "vocab.txt", "merges.txt")


def find_model(model: str, *, builder: str = "huggingface", cache_dir: str | None = None) -> str:
    """What transformers is to load: a folder where there is one, else the hub id as it is.

    Hub ids are looked for in `CACHE/BUILDER/ORG/NAME` first, where a user without network puts the
    model's files.

    Raises:
        WeightsError: a path or package that is not there.
    """
    if model.startswith("package:") or is_local(model):
        return str(locate(model, f"{builder} model '{model}'"))
    prepare_hub()
    own = offline_folder(model, builder, cache_dir)
    return (
        str(own) if (own / "config.json").is_file() or (own / "modules.json").is_file() else model
    )


def offline_folder(model: str, builder: str, cache_dir: str | None) -> Path:
    """Where the files of a hub id are put by hand."""
    return cache_folder(cache_dir) / builder / model


def hub_cache(cache_dir: str | None) -> str | None:
    """Folder of the hub's downloads: ours where a recipe or VLKD_CACHE names one, else the one that
    transformers shares with others."""
    return (
        str(cache_folder(cache_dir) / "hub") if cache_dir or os.environ.get("VLKD_CACHE") else None
    )


def check_model_folder(folder: Path, what: str) -> None:
    """Refuse a local model folder in which a file is only a pointer to another (Git LFS).

    Raises:
        WeightsError: naming the file.
    """
    if folder.is_dir():
        for pattern in MODEL_FILES:
            for file in sorted(folder.glob(pattern)):
                check_file(file, what)


def refuse_foreign_code(config: Mapping[str, object], what: str, *, trust: bool) -> None:
    """Refuse a configuration that would have code fetched and run, unless the recipe trusts the
    model.

    In addition to `auto_map` this is `_attn_implementation_internal`, which makes some versions of
    transformers load a kernel from the hub even where remote code is off (CVE-2026-4372); it is
    looked for in nested sections too.

    Raises:
        RecipeError: such a key is there and `trust` is false.
    """
    for key, value in config.items():
        if key in RUNS_CODE and value and not trust:
            raise RecipeError(
                f"{what}: its configuration has '{key}', which runs code of the model's author. Add"
                " `trust: true` if you trust it."
            )
        if isinstance(value, Mapping) and key != "auto_map":
            refuse_foreign_code(value, what, trust=trust)


def read_json(path: Path, what: str) -> object:
    """A small JSON file of a model folder.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{what}: '{path}' cannot be read ({first_line(error)}). Replace the file."
        ) from error


def missing(
    what: str, model: str, builder: str, cache_dir: str | None, error: BaseException
) -> WeightsError:
    """The line for a model of the hub that is neither on disk nor can be fetched."""
    files = f"config.json, model.safetensors and tokenizer.json of hub id '{model}'"
    return unfetchable(
        what,
        files=files,
        folder=offline_folder(model, builder, cache_dir),
        error=None if "\n" in str(error) else error,
    )
