"""A tower on disk, usable without vlkd: the backbone in its library's format, next to it what vlkd
added, and a page on how to use both."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import Tensor, nn

from vlkd_cli.builders.adapters.any_tower import merged
from vlkd_cli.builders.adapters.attach import is_own
from vlkd_cli.builders.backbone import Export
from vlkd_cli.builders.huggingface.dual import LogitStart
from vlkd_cli.builders.weights import write_weights
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.towers.tower import Tower

PAGE = "vlkd_tower.yaml"
ADDED = "head.safetensors"
DUAL = "dual_encoder"
"""Folder of a pair of halves in the library's own format."""


class ExportedTower(NamedTuple):
    """A tower that was written: how to load it, its files by their paths in the folder, and how
    many parameters they hold."""

    name: str
    how: Export
    files: list[str]
    num_parameters: int


def export_tower(
    tower: Tower, folder: Path, destination: Path, *, name: str | None = None
) -> ExportedTower:
    """Write a tower into an empty folder.

    The backbone is written by its builder's own means. Pooler, heads and mask token, which no
    library knows, are in `head.safetensors` as `pooler.*`, `head.*`, `heads.NAME.*` and
    `mask_token` if the tower has them; `vlkd_tower.yaml` describes how the feature is computed.

    Args:
        folder: where to write.
        destination: where the folder will be when it is done, as written in its page.
        name: the tower's name in the recipe, where it is a copy that bears another's.

    Raises:
        WeightsError: the tower's builder has no format to write.
    """
    section = tower.section
    assert section is not None, "the tower was not assembled from a recipe"
    name = name or tower.name
    if section.dtype is not None:
        # Libraries choose the type of a whole model; the numbers stay those of 16 bits.
        tower.encoder.float()
    if tower.encoder.adapter_name:
        how = merged(tower.encoder).export(folder, destination, section.keys)
        how = how._replace(adapter="merged")
    else:
        how = tower.encoder.export(folder, destination, section.keys)
    if section.pooler is not None:
        how = how._replace(recipe={**how.recipe, "pooler": section.pooler.model_dump()})
    added = {
        f"{part}.{own}": tensor
        for part in ("pooler", "head", "heads")
        for own, tensor in _state(getattr(tower, part)).items()
    }
    if tower.encoder.mask_token is not None:
        added["mask_token"] = tower.encoder.mask_token
    if added:
        write_weights(added, folder / ADDED)
    (folder / PAGE).write_text(
        yaml.safe_dump(
            {"tower": name, **page_of(tower, how, destination, added=bool(added))},
            sort_keys=False,
            width=140,
        ),
        encoding="utf-8",
    )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        # safetensors writes files that nobody else may read.
        shutil.copymode(folder / PAGE, file)
    paths = [file.relative_to(folder).as_posix() for file in files]
    return ExportedTower(name, how, paths, _count(tower, merged=how.adapter == "merged"))


def export_pair(
    towers: Sequence[Tower], state: Mapping[str, Tensor], folder: Path, destination: Path
) -> ExportedTower | None:
    """Write the halves of one dual encoder of transformers together, with tokenizer and image
    processor; None where these towers are not a pair of halves without pooler and heads.

    Args:
        state: of the run's distillers; the factor on cosines (and bias) of the only one that has
            them is written too.
        folder: where to write; made where there is a pair.
    """
    halves: list[Any] = [
        tower.encoder for tower in towers if getattr(tower.encoder, "origin", None)
    ]
    plain = all(tower.pooler is None and not tower.parts() for tower in towers)
    if len(towers) != 2 or len(halves) != 2 or not plain:
        return None
    first, second = halves
    own, other = (half.origin for half in halves)
    if first.modality == second.modality or own.config.to_dict() != other.config.to_dict():
        return None
    folder.mkdir()
    own.write(folder, first.encoder, second.encoder, start=logit_start_of(state))
    hows = [half.exported(folder, destination, {}) for half in halves]
    recipe = {key: value for key, value in hows[0].recipe.items() if key != "modality"}
    how = hows[0]._replace(note="", recipe=recipe)
    files = sorted(path.name for path in folder.iterdir())
    return ExportedTower(DUAL, how, files, sum(_count(tower, merged=False) for tower in towers))


def logit_start_of(state: Mapping[str, Tensor]) -> LogitStart | None:
    """The factor on cosines, and the bias, of the only distiller of a run that has them; None where
    there is none, or more than one."""
    scales = [name for name in state if name.rpartition(".")[2] == "log_scale"]
    if len(scales) != 1:
        return None
    bias = state.get(scales[0].replace("log_scale", "bias"))
    factor = math.exp(float(state[scales[0]]))
    return LogitStart(factor, None if bias is None else float(bias))


def page_of(
    tower: Tower, how: Export, destination: Path, *, added: bool, own_head: bool = False
) -> dict[str, Any]:
    """The content of `vlkd_tower.yaml` for a tower; paths are relative to the folder that it is in,
    which may be moved.

    Args:
        destination: the folder as `how` names it.
        added: whether pooler and heads are in a file of their own.
        own_head: whether they are in the library's own files.
    """
    section = tower.section
    assert section is not None
    page: dict[str, Any] = {"modality": tower.modality, "format": how.format}
    page["python"] = _relative(how.python, destination)
    page["recipe"] = {key: _relative(value, destination) for key, value in how.recipe.items()}
    page["feature"] = (
        how.feature
        if section.pooler is None or own_head
        else f"the tokens, pooled by {section.pooler.name}"
    )
    page["feature_width"] = tower.width if own_head else tower.feature_width
    if isinstance(tower.input, ImageInput):
        page["images"] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in tower.input._asdict().items()
        }
    for name, head in ({} if own_head else section.all_heads).items():
        described = head.model_dump(exclude_defaults=True)
        if name == "head":
            page["head"] = described
        else:
            page.setdefault("heads", {})[name] = described
    if added:
        page["weights_of_pooler_and_head"] = ADDED
    if how.note:
        page["note"] = how.note
    return page


def _relative(value: object, destination: Path) -> object:
    """A text in which the folder, alone or at the beginning of a path, is written as `.`."""
    if not isinstance(value, str):
        return value
    return re.sub(rf"(?<![\w./]){re.escape(str(destination))}(?![\w.])", ".", value)


def _count(tower: Tower, *, merged: bool) -> int:
    parts = [tower.encoder, tower.pooler, tower.head, tower.heads]
    named = [item for part in parts if part is not None for item in part.named_parameters()]
    return sum(parameter.numel() for name, parameter in named if not (merged and is_own(name)))


def _state(module: nn.Module | None) -> dict[str, Tensor]:
    return {} if module is None else module.state_dict()
