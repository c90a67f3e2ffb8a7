"""What the tokens of an image tower would take in a cache, as far as its recipe and the files on
disk show it: nothing here imports torch."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlkd_cli.recipe.adapters import read_config
from vlkd_cli.recipe.schema import TowerSpec

VALUE_BYTES = 4
Sizes = dict[str, Any]
"""Side of a picture and of a patch in pixels, and number of values of a token: `image`, `patch`,
`width`."""
_STANDARD: Sizes = {"image": 224, "patch": 16, "width": 768}
"""Of a ViT-B/16, which the libraries build by default."""
_KEYS: dict[str, dict[str, str]] = {
    "huggingface": {"image": "image_size", "patch": "patch_size", "width": "hidden_size"},
    "openclip": {"image": "image_size", "patch": "patch_size", "width": "width"},
    "timm": {"image": "img_size", "patch": "patch_size", "width": "embed_dim"},
}
"""What a library calls them."""
_WIDTHS = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}
_TIMM = re.compile(
    rf"(?:vit|deit3?|beit|beitv2)_({'|'.join(_WIDTHS)})_patch(\d+)_(?:[a-z]\w*_)?(\d+)"
)
_TORCHVISION = re.compile(r"vit_([blh])_(\d+)$")
_STANDARD_TYPES = ("beit", "data2vec-vision", "deit", "ijepa", "vit", "vit_mae", "vit_msn")
"""Types of transformers with a token for each patch, of the standard sizes by default."""
_TYPES = (
    *_STANDARD_TYPES,
    *("aimv2", "chinese_clip", "clip", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip"),
)


def size_of_tokens(tower: TowerSpec) -> str | None:
    """The size of the cached tokens of an image; None where the tower's sizes are not known."""
    keys = tower.keys
    find = _FINDERS.get(str(tower.builder))
    sizes = find(keys) if find is not None else None
    if sizes is None:
        return None
    config = keys.get("config") or {}
    for name, own in _KEYS.get(str(tower.builder), {}).items():
        sizes[name] = config.get(own, config.get(name, sizes.get(name)))
    image, patch, width = keys.get("image_size") or sizes["image"], sizes["patch"], sizes["width"]
    if not all(isinstance(size, int) and size > 0 for size in (image, patch, width)):
        return None
    patches = (image // patch) ** 2
    size = patches * width * VALUE_BYTES
    shown = f"{size / 1e3:.3g} kB" if size < 1e6 else f"{size / 1e6:.3g} MB"
    return f"{patches:,} patches of {width:,} values, {shown} an image"


def _of_timm(keys: Mapping[str, Any]) -> Sizes | None:
    found = _TIMM.match(str(keys.get("model")))
    if found is None:
        return None
    return {"width": _WIDTHS[found[1]], "patch": int(found[2]), "image": int(found[3])}


def _of_torchvision(keys: Mapping[str, Any]) -> Sizes | None:
    found = _TORCHVISION.match(str(keys.get("model")))
    # Some named weights are for larger pictures.
    if found is None or isinstance(keys.get("pretrained"), str):
        return None
    width = _WIDTHS[{"b": "base", "l": "large", "h": "huge"}[found[1]]]
    return {**_STANDARD, "width": width, "patch": int(found[2])}


def _of_openclip(keys: Mapping[str, Any]) -> Sizes | None:
    model = keys.get("model")
    if not model:
        return dict(_STANDARD)
    spec = importlib.util.find_spec("open_clip")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        file = Path(root) / "model_configs" / f"{str(model).replace('/', '-')}.json"
        if not file.is_file():
            continue
        vision = json.loads(file.read_text(encoding="utf-8"))["vision_cfg"]
        if "timm_model_name" in vision:
            return _of_timm({"model": vision["timm_model_name"]})
        # A list is the depths of a ResNet's stages.
        if not isinstance(vision.get("layers"), list):
            names = _KEYS["openclip"].items()
            return {name: vision.get(own, _STANDARD[name]) for name, own in names}
    return None


def _of_transformers(keys: Mapping[str, Any]) -> Sizes | None:
    if keys.get("model"):
        config = read_config(keys)
    else:
        config = {"model_type": (keys.get("config") or {}).get("type", "vit")}
    kind = str((config or {}).get("model_type")).removesuffix("_vision_model")
    if config is None or kind not in _TYPES:
        return None
    sizes = config.get("vision_config") or config
    usual = _STANDARD if kind in _STANDARD_TYPES else {}
    return {name: sizes.get(key, usual.get(name)) for name, key in _KEYS["huggingface"].items()}


_FINDERS: dict[str, Callable[[Mapping[str, Any]], Sizes | None]] = {
    "huggingface": _of_transformers,
    "openclip": _of_openclip,
    "timm": _of_timm,
    "torchvision": _of_torchvision,
}
