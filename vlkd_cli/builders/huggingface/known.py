"""The encoders of transformers that can be towers, and those that are on disk; torch-free, as the
library itself cannot be imported without torch.

The types are read from the source of transformers' own tables.
"""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from vlkd_cli.cache_folder import cache_folder
from vlkd_cli.recipe.modality import PAIR
from vlkd_cli.recipe.types import ModalityName

ON_DISK = "on disk"
"""What the column of pretrained weights shows of a model that need not be fetched."""
DUAL = (
    "aimv2",
    "align",
    "altclip",
    "chinese_clip",
    "clip",
    "clipseg",
    "metaclip_2",
    "siglip",
    "siglip2",
)
"""Types with a tower for images and one for texts."""
ANY_PAIR = "vision-text-dual-encoder"
"""The type of two encoders of any type."""
_MORE_IMAGES = ("cvt", "pvt_v2")
"""Vision encoders that the library does not list as such."""
_NOT_IMAGES = (
    "cohere2_vision",
    "conditional_detr",
    "dab-detr",
    "deformable_detr",
    "depth_pro",
    "deta",
    "detr",
    "dinat",
    "edgetam_vision_model",
    "glpn",
    "imagegpt",
    "llama4",
    "mllama",
    "nat",
    "sam2_vision_model",
    "sam_hq_vision_model",
    "sam_vision_model",
    "swin2sr",
    "table-transformer",
    "timesformer",
    "timm_backbone",
    "videomae",
    "vit_hybrid",
    "vitdet",
    "vivit",
    "yolos",
)
"""Types among the library's vision models that give no feature of one picture of fixed size, or
need a further library."""


def types_of(modality: str) -> list[str]:
    """The `model_type` of every encoder of a modality, sorted."""
    models = _keys("modeling_auto", "MODEL_MAPPING_NAMES")
    vision = _keys("modeling_auto", "MODEL_FOR_IMAGE_MAPPING_NAMES")
    words = _keys("tokenization_auto", "TOKENIZER_MAPPING_NAMES")
    if modality == "text":
        return sorted(models & words)
    halves = {name for name in models if name.endswith("_vision_model")}
    more = {*halves, *DUAL, *_MORE_IMAGES}
    return sorted(((vision | more) & models) - set(_NOT_IMAGES))


def modalities_in(folder: Path) -> list[ModalityName]:
    """The modalities that a model in a folder has towers for; none where there is no such model."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    # A damaged file is reported where its model is built.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [word for word in PAIR if kind == ANY_PAIR or kind in types_of(word)]


class OnDisk(NamedTuple):
    """A model on disk: its hub id, and its sizes as far as its configuration has them."""

    name: str
    width: int | None
    image_size_px: int | None


def on_disk(modality: str, cache_dir: str | None = None) -> Iterator[OnDisk]:
    """Every model in vlkd's cache and in the hub's whose type has a tower of a modality."""
    known = types_of(modality)
    inner = "vision_config" if modality == "image" else "text_config"
    for name, file in model_files(cache_dir):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            kind = config["model_type"]
            sizes = {**config, **(config.get(inner) or {})}
        # A damaged file is reported where its model is built.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if kind not in known:
            continue
        width, pixels = config.get("projection_dim"), sizes.get("image_size")
        width = width if kind in DUAL and width else sizes.get("hidden_size")
        yield OnDisk(
            name,
            width if isinstance(width, int) else None,
            pixels if modality == "image" and isinstance(pixels, int) else None,
        )


def model_files(cache_dir: str | None = None) -> list[tuple[str, Path]]:
    """Hub ids of the models on disk with their config.json, each once."""
    own = cache_folder(cache_dir) / "huggingface"
    found = {
        file.parent.relative_to(own).as_posix(): file
        for file in sorted(own.glob("*/*/config.json"))
    }
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    shared = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    for hub in (cache_folder(cache_dir) / "hub", shared):
        for file in sorted(hub.glob("models--*/snapshots/*/config.json")):
            name = file.parents[2].name.removeprefix("models--").replace("--", "/")
            found.setdefault(name, file)
    return sorted(found.items())


@functools.cache
def _keys(module: str, table: str) -> frozenset[str]:
    """The keys of one of transformers' tables of types."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    file = Path(spec.submodule_search_locations[0]) / "models" / "auto" / f"{module}.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        targets = (
            [node.target]
            if isinstance(node, ast.AnnAssign)
            else node.targets
            if isinstance(node, ast.Assign)
            else []
        )
        if table not in [target.id for target in targets if isinstance(target, ast.Name)]:
            continue
        found = frozenset(_first_strings(node))
        if found:
            return found
    return frozenset()


def _first_strings(node: ast.AST) -> Iterator[str]:
    """The first element of every pair of a literal table, and the keys of a literal dict."""
    for part in ast.walk(node):
        keys: Sequence[ast.expr | None] = part.keys if isinstance(part, ast.Dict) else []
        if isinstance(part, ast.Tuple) and len(part.elts) == 2:
            keys = part.elts[:1]
        for key in keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value
