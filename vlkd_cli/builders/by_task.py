"""The models by name of each task, as rows of a table; torch-free where the widths are in the
shipped listings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from vlkd_cli import catalog, console
from vlkd_cli.builders.listing import LIBRARIES, ModelRow, rows_of
from vlkd_cli.builders.on_disk import OF_THE_HUB, folder_of, is_on_disk
from vlkd_cli.catalog import did_you_mean
from vlkd_cli.errors import MissingPackageError, UserError
from vlkd_cli.recipe.named_models import TASKS, NamedModel, named_models

MODALITIES_OF: Mapping[str, tuple[str, ...]] = {
    "text-to-text": ("text",),
    "image-to-image": ("image",),
    "text-to-image": ("image", "text"),
    "mesh-to-mesh": ("mesh",),
    "synthesis": (),
}
"""The towers that a model of a task has."""
SHIPPED_LISTINGS = ("openclip", "timm", "torchvision")
"""Builders whose listings name every model."""
TYPES_ONLY = ("adapters",)
"""Builders whose rows are types of encoders, not models."""


class TaskRow(TypedDict):
    """A model of a task; see `describe_models`."""

    name: str
    task: str
    output_dim: int | None
    parameters: int | None
    architecture: str | None
    on_disk: bool
    description: str
    towers: list[str]
    missing: str


def describe_models(task: str | None = None) -> list[TaskRow]:
    """The models that `image: NAME` and `like: NAME` take, one row per model and task.

    Args:
        task: only the models of one of `TASKS`, e.g. "image-to-image"; by default all.

    Returns:
        Rows with `name`, `task`, `output_dim` (width of the feature; None where the model's files
        must be fetched first, and of models that score pairs), `parameters` (of all its encoders;
        None where no listing has them), `architecture`, `on_disk` (whether its weights need not be
        fetched), `description`, `towers` (modalities) and `missing` (what the model needs that this
        version of vlkd does not have, else "").

    Raises:
        UserError: no such task.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"no task '{task}'.{did_you_mean(task, TASKS)} Tasks: {', '.join(TASKS)}.")
    return [
        {
            "name": model.name,
            "task": each,
            "output_dim": output_dim(model),
            "parameters": _parameters(model),
            "architecture": model.architecture,
            "on_disk": all(
                map(_is_on_disk, [*model.towers.values(), *filter(None, [model.scorer])])
            ),
            "description": model.about,
            "towers": list(model.towers),
            "missing": model.missing,
        }
        for model in named_models().values()
        for each in model.tasks
        if task in (None, each)
    ]


def refuse_unknown_model(name: str) -> None:
    """Refuse a `BUILDER:MODEL` that is not in a complete listing of the builder.

    Raises:
        UserError: it names the closest model.
    """
    builder, _, rest = name.partition(":")
    if builder not in SHIPPED_LISTINGS or "/" in rest or rest.startswith("hf-hub:"):
        return
    model = rest.partition(":")[0]
    # A tag of timm's follows a dot.
    model = model.partition(".")[0] if builder == "timm" else model
    try:
        known = sorted({row["name"] for row in rows_of(builder)})
    except MissingPackageError:
        return
    if model not in known:
        raise UserError(
            f"'{name}': {builder} has no model '{model}'.{did_you_mean(model, known)} See `vlkd"
            f" list-models --builder {builder}`."
        )


def every_model(task: str) -> list[TaskRow]:
    """The rows of `describe_models`, and one for each model of a builder that has all the towers of
    a task, named `BUILDER:MODEL`.

    Of hub models, those that are on disk. Builders whose library is not installed are left out with
    a warning.

    Raises:
        UserError: no such task.
    """
    rows = describe_models(task)
    wanted = MODALITIES_OF[task]
    for builder in catalog.names("builder") if wanted else ():
        if builder in TYPES_ONLY:
            continue
        try:
            listed = rows_of(builder)
        except MissingPackageError as error:
            console.warn(f"{error} Its models are left out.")
            continue
        towers: dict[str, dict[str, ModelRow]] = {}
        for row in listed:
            if builder == "huggingface" and not row["pretrained"]:
                continue
            towers.setdefault(str(row["name"]), {})[str(row["modality"])] = row
        rows += [
            _row_of_builder(builder, name, task, own)
            for name, own in towers.items()
            if set(wanted) <= set(own)
        ]
    return rows


def _row_of_builder(builder: str, name: str, task: str, towers: Mapping[str, ModelRow]) -> TaskRow:
    chosen = [towers[modality] for modality in MODALITIES_OF[task]]
    first = chosen[0]
    tags = ", ".join(first["pretrained"])
    weights: list[bool | str] = [*first["pretrained"]] or [False]
    if builder in OF_THE_HUB:
        weights = [True]
    return {
        "name": f"{builder}:{name}",
        "task": task,
        "output_dim": first["width"],
        "parameters": _sum([row["parameters"] for row in chosen]),
        "architecture": None,
        "on_disk": any(is_on_disk(builder, name, tag) for tag in weights),
        "description": f"weights: {tags}" if tags else "no published weights",
        "towers": list(MODALITIES_OF[task]),
        "missing": "",
    }


def output_dim(model: NamedModel) -> int | None:
    """Width of the feature of a model's towers; None if it cannot be determined on this
    machine."""
    for modality, section in model.towers.items():
        head = section.get("head")
        if isinstance(head, Mapping):
            return int(head["width"])
        if section["builder"] in OF_THE_HUB:
            return _width_of_files(section)
        row = _row_of_listing(modality, section)
        return None if row is None else row["width"]
    return None


def _parameters(model: NamedModel) -> int | None:
    rows = [_row_of_listing(modality, section) for modality, section in model.towers.items()]
    return _sum([None if row is None else row["parameters"] for row in rows])


def _sum(counts: Sequence[int | None]) -> int | None:
    """None where there is nothing to add or one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _is_on_disk(section: Mapping[str, Any]) -> bool:
    """Of the section of a tower or scorer; models of the hub have weights by default."""
    builder = section.get("builder") or section["name"]
    return is_on_disk(builder, section["model"], section.get("pretrained", builder in OF_THE_HUB))


def _row_of_listing(modality: str, section: Mapping[str, Any]) -> ModelRow | None:
    """The row of a library's listing; None where there is none."""
    if section["builder"] not in LIBRARIES or section["builder"] in OF_THE_HUB:
        return None
    try:
        rows = rows_of(section["builder"])
    except MissingPackageError:
        return None
    wanted = (section["model"], modality)
    return next((row for row in rows if (row["name"], row["modality"]) == wanted), None)


def _width_of_files(section: Mapping[str, Any]) -> int | None:
    """The width in the files of a hub's model; None if they are not on disk."""
    folder = folder_of(section["builder"], section["model"])
    try:
        if folder is None:
            return None
        if section["builder"] == "sbert" and (folder / "modules.json").is_file():
            return _width_of_modules(folder)
        width = _read(folder / "config.json").get("hidden_size")
    # What is damaged is reported where the model is built.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return width if isinstance(width, int) else None


def _width_of_modules(folder: Path) -> int | None:
    """The width after the last module of a sentence-transformers folder that changes it."""
    width = None
    for module in _read(folder / "modules.json"):
        file = folder / module["path"] / "config.json"
        settings = _read(file) if file.is_file() else {}
        if module["type"].endswith(".Pooling"):
            width = _width_of_pooling(settings)
        elif module["type"].endswith(".Dense"):
            width = settings["out_features"]
    return width


def _width_of_pooling(settings: Mapping[str, Any]) -> int:
    """Several ways of pooling are joined. Older versions write one flag for each way."""
    if "embedding_dimension" in settings:
        modes = settings.get("pooling_mode", "mean")
        return int(settings["embedding_dimension"]) * (
            len(modes) if isinstance(modes, list) else len(modes.split("+"))
        )
    flags = [on for key, on in settings.items() if key.startswith("pooling_mode_")]
    return int(settings["word_embedding_dimension"]) * max(sum(map(bool, flags)), 1)


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
