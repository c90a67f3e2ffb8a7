"""A tower out of a folder that `vlkd export` wrote, wherever that folder is now."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlkd_cli.builders.huggingface.known import modalities_in
from vlkd_cli.builders.weight_files import read_weights
from vlkd_cli.data.files.texts import decode_text, read_file
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.load import TRUST_OPTION
from vlkd_cli.recipe.messages import report
from vlkd_cli.recipe.modality import PAIR
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.recipe.trust import check_foreign
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.recipe.yaml_file import plain_values
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.export import DUAL, PAGE
from vlkd_cli.towers.tower import Tower

_FORMER_PATHS = ("model", "pretrained", "adapter_weights")
"""Keys of a builder whose values are the path of exported files, as it was when they were written,
in pages that are older than relative paths."""


_LARGEST_SIDE_PX = 10_000


def exported_folders(path: Path) -> dict[str, Path]:
    """The folders of exported towers by the towers' names: the folder itself, or those in it; none
    where nothing was exported there."""
    if (path / PAGE).is_file():
        return {path.resolve().name: path}
    return {page.parent.name: page.parent for page in sorted(path.glob(f"*/{PAGE}"))}


def sections_of_whole(path: Path) -> dict[ModalityName, dict[str, object]]:
    """By modality, the towers of a model that open_clip, transformers or sentence-transformers
    wrote: in the folder itself, or where `vlkd export` writes a pair; none where there is none."""
    for folder in (path, path / DUAL):
        own: dict[str, object] = {"model": str(folder), "train": "none"}
        if (folder / "open_clip_config.json").is_file():
            return {word: {"builder": "openclip", **own, "pretrained": True} for word in PAIR}
        if (folder / "modules.json").is_file():
            return {"text": {"builder": "sbert", **own}}
        if found := modalities_in(folder):
            return {word: {"builder": "huggingface", **own} for word in found}
    return {}


def load_exported(
    folder: Path,
    *,
    trust: bool = False,
    remedy: str = TRUST_OPTION,
    cache_dir: Path | None = None,
) -> Tower:
    """The tower, with its pooler and heads, and images prepared as in the run that it is from.

    Args:
        trust: let its page name code from outside vlkd.
        remedy: what to do for someone who trusts its author.

    Raises:
        RecipeError: its page is damaged, or names code that is not trusted.
        WeightsError: its weights are missing or do not fit.
    """
    name = str(_read(folder / PAGE)["tower"])
    section = {**section_of(folder, trust=trust, remedy=remedy), "train": "none"}
    try:
        spec = TowerSpec.model_validate(section)
    except ValidationError as error:
        raise _damaged(folder / PAGE, error.errors()[0]["msg"]) from error
    tower = assemble(name, spec, cache_dir=cache_dir)
    complete(tower, folder)
    return tower


def section_of(folder: Path, *, trust: bool = False, remedy: str = TRUST_OPTION) -> dict[str, Any]:
    """The section of a recipe that builds the tower, without what `complete` adds.

    Raises:
        RecipeError: see `load_exported`.
    """
    file = folder / PAGE
    page = _read(file)
    name = str(page["tower"])
    section = {
        **{key: _moved(key, value, folder, name) for key, value in page["recipe"].items()},
        **{key: page[key] for key in ("modality", "head", "heads") if key in page},
    }
    if not trust and (problems := check_foreign({"towers": {name: section}}, remedy)):
        raise RecipeError(report({}, problems, str(file)))
    return section


def complete(tower: Tower, folder: Path) -> None:
    """Give a tower that was built from its section the weights of its pooler and heads, and
    prepare images as the run did.

    Raises:
        RecipeError: the page is damaged.
        WeightsError: weights do not fit.
    """
    page = _read(folder / PAGE)
    if "images" in page:
        try:
            tower.input = _images(page["images"])
        except ValueError as error:
            raise _damaged(folder / PAGE, "`images` is of another form") from error
    if "weights_of_pooler_and_head" in page:
        _load_added(tower, folder / str(page["weights_of_pooler_and_head"]))


def _read(file: Path) -> dict[str, Any]:
    try:
        page = plain_values(decode_text(read_file(file)))
    except OSError as error:
        raise _damaged(file, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    if isinstance(page, dict) and page.get("format") == "ONNX":
        raise RecipeError(
            f"{file.parent} holds an ONNX file, which vlkd writes and does not read. Name the run,"
            " or export it without --format onnx."
        )
    if not isinstance(page, dict) or not isinstance(page.get("recipe"), dict):
        raise _damaged(file, "it holds no recipe")
    if "tower" not in page:
        raise _damaged(file, "it names no tower")
    return page


def _damaged(file: Path, problem: str) -> RecipeError:
    return RecipeError(f"{file} is damaged: {problem.rstrip('.')}. Export the run again.")


def _moved(key: str, value: object, folder: Path, name: str) -> object:
    """A value of the page; the path of exported files is adapted to where the folder is now."""
    if not isinstance(value, str):
        return value
    if value == "." or value.startswith("./"):
        return str(folder / value)
    if key not in _FORMER_PATHS:
        return value
    last = Path(value).name
    if (folder / last).exists():
        return str(folder / last)
    return str(folder) if last == name else value


def _images(values: object) -> ImageInput:
    found = TypeAdapter(ImageInput).validate_python(values)
    resized = found.resize_px if isinstance(found.resize_px, tuple) else (found.resize_px or 1,)
    if not all(1 <= side <= _LARGEST_SIDE_PX for side in (*found.size_px, *resized)):
        raise ValueError("a size that no picture has")
    if not all(map(math.isfinite, (*found.mean, *found.std))) or min(found.std) <= 0:
        raise ValueError("numbers that standardize nothing")
    return found


def _load_added(tower: Tower, file: Path) -> None:
    """Weights of the pooler and the heads; the mask token, which no encoding reads, is left out."""
    state = {
        key: value
        for key, value in read_weights(file, f"tower '{tower.name}'").items()
        if key != "mask_token"
    }
    parts = ("pooler.", "head.", "heads.")
    own = {key: value for key, value in tower.state_dict().items() if key.startswith(parts)}
    for key in [*own, *state]:
        if key not in state or key not in own or state[key].shape != own[key].shape:
            raise WeightsError(f"{file} does not fit its page: '{key}' differs. Export it again.")
    tower.load_state_dict(state, strict=False)
