"""What a run was: the resolved recipe, the versions of everything that takes part, and the state of
the checkout."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import yaml
from pydantic import BaseModel

import vlkd_cli
from vlkd_cli.recipe.schema import Recipe

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "sentence-transformers",
    "adapters",
    "peft",
    "tokenizers",
    "webdataset",
    "numpy",
    "pillow",
    "scikit-learn",
    "pydantic",
)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe with every section's default written out; loading the text gives an equal
    recipe.

    Texts with `${VARIABLES}` stay as they were written: their values may be secrets.
    """
    return yaml.dump(
        _with_variables(_plain(recipe), recipe),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
        default_flow_style=None,
    )


def recipe_to_json(recipe: Recipe) -> str:
    """The recipe for workers and checkpoints, texts with `${VARIABLES}` as they were written;
    `load.recipe_from_json` reads it."""
    return json.dumps(_with_variables(recipe.model_dump(mode="json", by_alias=True), recipe))


def write_snapshot(recipe: Recipe, folder: Path) -> None:
    """Write `recipe.yaml` and `versions.json` into a run folder, over those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")


class Versions(TypedDict):
    """What a run was made with; `versions.json`."""

    vlkd: str
    python: str
    platform: str
    packages: dict[str, str]
    git: dict[str, object] | None
    command: list[str]


def versions() -> Versions:
    """Versions of vlkd, Python and the libraries; git state of the checkout where vlkd is run from
    one; the command."""
    return {
        "vlkd": vlkd_cli.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "git": git_state(Path(vlkd_cli.__file__).resolve().parent.parent),
        "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
    }


def git_state(folder: Path) -> dict[str, object] | None:
    """Commit of a checkout and whether its files differ from it; None outside of a checkout or
    without git."""
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {
            "commit": commit,
            "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    ).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class _Quoted(str):
    """A text that YAML must not read as a number once its variables are resolved."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Quoted,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'"),
)


def _with_variables(values: object, recipe: Recipe) -> object:
    """The plain values with each resolved text as it was written."""
    written = recipe.written()

    def walk(value: object, path: tuple[str | int, ...]) -> object:
        if path in written:
            return _Quoted(written[path])
        if isinstance(value, dict):
            return {key: walk(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, (*path, number)) for number, item in enumerate(value)]
        return value

    return walk(values, ())


def _plain(value: object) -> object:
    """Plain values; a null is left out only where it is the default, for some keys' defaults are
    not null."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        declared = {
            field.alias or name: getattr(value, name)
            for name, field in fields.items()
            if not (getattr(value, name) is None and field.default is None)
        }
        return {
            name: _plain(item) for name, item in {**declared, **(value.model_extra or {})}.items()
        }
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
