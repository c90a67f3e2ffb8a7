"""Whether the weights that a tower's section names are on disk, so that nothing must be fetched;
torch-free, hence from the names of files alone."""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlkd_cli.builders.huggingface import known
from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.recipe.params import module_file
from vlkd_cli.recipe.types import ModalityName

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".th", ".npz")
"""Of files of weights."""
OF_THE_HUB = ("huggingface", "sbert", "cross_encoder")
"""Builders and scorers whose models are folders of the hub."""


def is_on_disk(builder: str, model: str, pretrained: bool | str = True) -> bool:
    """Whether a model's weights are in a cache folder, fetched or put there by hand; true where
    its weights are random."""
    if pretrained is False:
        return True
    if builder in OF_THE_HUB:
        folder = folder_of(builder, model)
        return folder is not None and _holds_weights(folder)
    own = cache_folder() / builder
    if builder == "torchvision":
        hub = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
        shared = Path(os.environ.get("TORCH_HOME", hub)).expanduser() / "hub"
        # Names of files continue with the origin of the weights and their hash.
        return any(
            file.suffix == ".pth" and file.name[len(model) : len(model) + 1] in ("-", "_")
            for folder in (own, shared)
            for file in (folder / "checkpoints").glob(f"{model}*")
        )
    by_hand = f"{model}-{pretrained}" if builder == "openclip" else f"{model}.{pretrained}"
    if any((own / f"{by_hand}{suffix}").is_file() for suffix in SUFFIXES):
        return True
    hub_id = f"timm/{by_hand}" if builder == "timm" else _openclip_ids().get(by_hand, "")
    snapshots = own / f"models--{hub_id.replace('/', '--')}" / "snapshots"
    return bool(hub_id) and any(map(_holds_weights, snapshots.glob("*")))


def folder_of(builder: str, model: str) -> Path | None:
    """The folder of a hub's model on disk; None if there is none."""
    by_hand = cache_folder() / builder / model
    if (by_hand / "config.json").is_file() or (by_hand / "modules.json").is_file():
        return by_hand
    file = dict(known.model_files()).get(model)
    return None if file is None else file.parent


def towers_on_disk(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sections of towers by modality, without those that a model of the hub does not have; all of
    them where it is not on disk."""
    found = {}
    for modality, section in sections.items():
        there: list[ModalityName] = []
        if section["builder"] == "huggingface":
            model = str(section["model"])
            folder = Path(model) if Path(model).is_dir() else folder_of("huggingface", model)
            there = [] if folder is None else known.modalities_in(folder)
        if not there or modality in there:
            found[modality] = dict(section)
    return found


def _holds_weights(folder: Path) -> bool:
    return any(file.suffix in SUFFIXES for file in folder.glob("*"))


@functools.cache
def _openclip_ids() -> Mapping[str, str]:
    """The hub's id of each `MODEL-TAG` of open_clip, from the source of its table."""
    file = module_file("open_clip.pretrained")
    if file is None:
        return {}
    tables: dict[str, dict[str, str]] = {}
    found: dict[str, str] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if isinstance(node.value, ast.Call):
            tables[node.targets[0].id] = dict(_tags(node.value))
        elif isinstance(node.value, ast.Dict):
            for model, table in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(model, ast.Constant) and isinstance(table, ast.Name):
                    own = tables.get(table.id, {})
                    found |= {f"{model.value!s}-{tag}": hub_id for tag, hub_id in own.items()}
    return found


def _tags(table: ast.Call) -> Iterator[tuple[str, str]]:
    """Tags and hub ids of `dict(TAG=_pcfg(hf_hub=ID, ...), ...)`."""
    for tag in table.keywords:
        fields: list[Any] = tag.value.keywords if isinstance(tag.value, ast.Call) else []
        for field in fields:
            if field.arg == "hf_hub" and isinstance(field.value, ast.Constant):
                # What follows the last slash is the name of a file.
                yield str(tag.arg), os.path.split(str(field.value.value))[0]
