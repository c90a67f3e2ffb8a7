"""Image processors of transformers, as the ImageInput that vlkd's loader follows.

What counts are the attributes of the object that AutoImageProcessor gives: the files leave out
defaults, and the slow and fast classes of a type have different ones.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vlkd_cli import console
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.huggingface.folders import (
    find_model,
    hub_cache,
    missing,
    read_json,
    refuse_foreign_code,
)
from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import ImageInput

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PretrainedConfig

FILES = ("preprocessor_config.json", "processor_config.json")
SAYS_HOW = (
    "image_processor_type",
    "feature_extractor_type",
    "image_processor",
    "image_mean",
    "size",
)
"""Keys of those files, one of which every image processor has."""
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""PIL's numbers of its resampling filters."""
DEFAULTS = {
    "altclip": "CLIPImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_convnext": "DINOv3ViTImageProcessorFast",
    "dinov3_vit": "DINOv3ViTImageProcessorFast",
}
"""Types that transformers names no image processor for, or only one of its kinds."""
STEPS = (
    "do_center_crop",
    "do_convert_annotations",
    "do_convert_rgb",
    "do_flip_channel_order",
    "do_normalize",
    "do_pad",
    "do_reduce_labels",
    "do_rescale",
    "do_resize",
)
"""Steps of a processor that are followed, refused with a reason of their own, or not of pictures;
one that is not listed is refused."""
_OF_ONE_TYPE = {
    "do_flip_channel_order": "MobileViTImageProcessor",
    "include_top": "EfficientNetImageProcessor",
    "rescale_offset": "EfficientNetImageProcessor",
}
"""Keys that one class alone obeys; others store them all the same."""
USUAL, USUAL_SIZE_PX = "ViTImageProcessor", 224


def load_processor(
    model: str | None,
    config: PretrainedConfig,
    *,
    builder: str = "huggingface",
    trust: bool = False,
    cache_dir: str | None = None,
) -> BaseImageProcessor:
    """The image processor of a model; where it has none, the default of its type.

    Raises:
        RecipeError: it needs code from elsewhere and the recipe does not set `trust: true`.
        WeightsError: its file is damaged.
    """
    if model is None:
        return default_processor(config)
    what = f"{builder} model '{model}'"
    source = find_model(model, builder=builder, cache_dir=cache_dir)
    found = _files(source, what, cache_dir)
    for raw in found:
        refuse_foreign_code(raw, what, trust=trust)
    if not any(set(raw) & set(SAYS_HOW) for raw in found):
        console.warn(
            f"{what} has no preprocessor_config.json; pictures are prepared as is usual for"
            f" models of type '{config.model_type}'."
        )
        return default_processor(config)
    try:
        return _from_pretrained(source, cache_dir=hub_cache(cache_dir), trust_remote_code=trust)
    # Its classes check their values in ways of their own.
    except Exception as error:
        if isinstance(error, OSError) and not Path(source).is_dir():
            raise missing(what, model, builder, cache_dir, error) from error
        with one_line(what, "Correct its preprocessor_config.json."):
            raise


def _files(source: str, what: str, cache_dir: str | None) -> list[Mapping[str, object]]:
    """The configuration of image processors in the model's files."""
    if Path(source).is_dir():
        paths = [Path(source) / name for name in FILES]
    else:
        from transformers.utils import cached_file

        known = [
            cached_file(
                source,
                name,
                cache_dir=hub_cache(cache_dir),
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            for name in FILES
        ]
        paths = [Path(path) for path in known if path is not None]
    raw = [read_json(path, what) for path in paths if path.is_file()]
    return [each for each in raw if isinstance(each, Mapping)]


def default_processor(config: PretrainedConfig) -> BaseImageProcessor:
    """The processor that transformers has for models of a type, at the size of the configuration's
    pictures."""
    kind = str(config.model_type).removesuffix("_vision_model").removesuffix("_model")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILES[0]
        for name in dict.fromkeys((DEFAULTS.get(kind), _by_type(kind), USUAL)):
            if name is None:
                continue
            file.write_text(json.dumps({"image_processor_type": name}), encoding="utf-8")
            try:
                processor = _from_pretrained(folder)
            # What is not installed, or is not an image processor, cannot be made.
            except Exception:
                continue
            break
    if hasattr(processor, "max_num_patches"):
        processor.patch_size, processor.max_num_patches = config.patch_size, config.num_patches
        return processor
    size = getattr(config, "image_size", USUAL_SIZE_PX)
    return at_size(processor, size if isinstance(size, int) else int(size[0]))


def _from_pretrained(source: str, **options: object) -> BaseImageProcessor:
    from transformers import AutoImageProcessor

    # It remarks on every class that the next version will replace.
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return AutoImageProcessor.from_pretrained(source, **options)
    finally:
        logger.setLevel(level)


def _by_type(kind: str) -> str | None:
    """The name of a type's class in transformers' own table, of whichever version."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    row: object = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    names = row.values() if isinstance(row, Mapping) else row if isinstance(row, tuple) else (row,)
    return next((name for name in names if isinstance(name, str)), None)


def at_size(processor: BaseImageProcessor, size_px: int) -> BaseImageProcessor:
    """A copy of a processor for square pictures of another size, its resize in proportion."""
    current = read_processor(processor, "model").size_px
    own = copy.deepcopy(processor)
    for key in ("size", "crop_size"):
        value = getattr(own, key, None)
        if value is None:
            continue
        sides = {side: pixels for side, pixels in dict(value).items() if pixels is not None}
        scaled = {
            side: round(pixels * size_px / current[side == "width"])
            for side, pixels in sides.items()
        }
        setattr(own, key, scaled)
    if hasattr(own, "max_num_patches"):
        own.max_num_patches = (size_px // own.patch_size) ** 2
    return own


def read_processor(processor: BaseImageProcessor, what: str) -> ImageInput:
    """How the processor prepares a picture.

    Raises:
        RecipeError: its pictures have no one size, or it resizes in a way that vlkd does not have.
    """
    kind, backend = _kind(processor), backend_of(processor)
    _refuse_other_steps(processor, kind, what)
    geometry = _geometry(processor, kind, what)
    scale, offset = 1.0, 0.0
    if _obeys(processor, "do_rescale"):
        scale = float(processor.rescale_factor)
        offset = 1.0 if _obeys(processor, "rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    # MobileViT's classes do not normalize whatever is in their file.
    if kind != "MobileViTImageProcessor" and _obeys(processor, "do_normalize"):
        mean, std = _three(processor.image_mean), _three(processor.image_std)
    divisor = _three(processor.image_std) if _obeys(processor, "include_top") else [1.0] * 3
    # (x * scale - offset - mean) / std / divisor, as (x / 255 - MEAN) / STD.
    red, green, blue = ((value + offset) / (255 * scale) for value in mean)
    spread = [one * two / (255 * scale) for one, two in zip(std, divisor, strict=True)]
    return ImageInput(
        size_px=geometry.size_px,
        resize_px=geometry.resize_px,
        resize=geometry.resize,
        interpolation=_interpolation(processor, what),
        mean=(red, green, blue),
        std=(spread[0], spread[1], spread[2]),
        # This one class of transformers 4 crops by torchvision's own function.
        crop="round" if type(processor).__name__ == "ConvNextImageProcessorFast" else "floor",
        backend=backend,
        channels="bgr" if _obeys(processor, "do_flip_channel_order") else "rgb",
        rescales_first=kind == "DINOv3ViTImageProcessor",
    )


def _refuse_other_steps(processor: BaseImageProcessor, kind: str, what: str) -> None:
    """Refuse what would change pictures in a way that vlkd does not have."""
    values = vars(processor)
    others = [
        key for key in values if key.startswith("do_") and key not in STEPS and values[key] is True
    ]
    others += [key for key in ("keep_aspect_ratio", "size_divisor") if values.get(key)]
    multiple = values.get("ensure_multiple_of") or 1
    if any(pixels % multiple for pixels in _sides(values.get("size")).values()):
        others.append("ensure_multiple_of")
    if others:
        raise RecipeError(
            f"{what}: its image processor ({kind}) has {others[0]}: {values[others[0]]}, which vlkd"
            " does not have. Choose another model, or another value in its"
            " preprocessor_config.json."
        )


class _Geometry(NamedTuple):
    resize: Literal["shortest", "squash", "none"]
    resize_px: int | tuple[int, int] | None
    size_px: tuple[int, int]


def _geometry(processor: BaseImageProcessor, kind: str, what: str) -> _Geometry:
    size = _sides(getattr(processor, "size", None))
    crops = _obeys(processor, "do_center_crop")
    crop = _sides(getattr(processor, "crop_size", None)) if crops else {}
    cropped = (crop["height"], crop["width"]) if {"height", "width"} <= set(crop) else None
    shorter = size.get("shortest_edge")
    if hasattr(processor, "max_num_patches"):
        side = math.isqrt(processor.max_num_patches) * processor.patch_size
        return _Geometry("squash", None, (side, side))
    if not getattr(processor, "do_resize", True) and cropped is not None:
        return _Geometry("none", None, cropped)
    pads = getattr(processor, "do_pad", False)
    if getattr(processor, "do_resize", True) and "longest_edge" not in size and not pads:
        ratio: Any = getattr(processor, "crop_pct", None)
        if kind == "ConvNextImageProcessor" and shorter is not None:
            if shorter >= 384:
                return _Geometry("squash", None, (shorter, shorter))
            return _Geometry("shortest", int(shorter / ratio), (shorter, shorter))
        if kind == "PoolFormerImageProcessor" and ratio is not None and cropped is not None:
            if shorter is None and size["height"] != size["width"]:
                sides = int(size["height"] / ratio), int(size["width"] / ratio)
                return _Geometry("squash", sides, cropped)
            return _Geometry("shortest", int((shorter or size["height"]) / ratio), cropped)
        if kind == "LevitImageProcessor" and shorter is not None and cropped is not None:
            return _Geometry("shortest", int((256 / 224) * shorter), cropped)
        if shorter is not None and cropped is not None:
            return _Geometry("shortest", shorter, cropped)
        if {"height", "width"} <= set(size):
            sides = size["height"], size["width"]
            return _Geometry("squash", None if cropped is None else sides, cropped or sides)
    raise RecipeError(
        f"{what}: its image processor ({kind}) {'pads' if pads else 'gives'} pictures of different"
        " sizes. Choose another model, or set size and crop_size in its preprocessor_config.json."
    )


def _obeys(processor: BaseImageProcessor, key: str) -> bool:
    """Whether a key is set and its class applies it; a class stores whatever is in its file."""
    if not getattr(processor, key, False) or _kind(processor) != _OF_ONE_TYPE.get(
        key, _kind(processor)
    ):
        return False
    named = inspect.signature(type(processor).__init__).parameters
    # Classes that name none of their keys leave all of them to their base.
    return key in named or "do_resize" not in named


def backend_of(processor: BaseImageProcessor) -> Literal["pil", "torchvision"]:
    """Which library resizes for it."""
    bases = [base.__name__ for base in type(processor).__mro__]
    fast = any("Fast" in name or "Torchvision" in name for name in bases)
    return "torchvision" if fast else "pil"


def _kind(processor: BaseImageProcessor) -> str:
    return type(processor).__name__.removesuffix("Fast").removesuffix("Pil")


def _sides(value: int | Mapping[str, int | None] | None) -> dict[str, int]:
    if isinstance(value, int):
        return {"height": value, "width": value}
    return {side: int(pixels) for side, pixels in dict(value or {}).items() if pixels is not None}


def _interpolation(
    processor: BaseImageProcessor, what: str
) -> Literal["bicubic", "bilinear", "nearest"]:
    number = getattr(processor, "resample", None)
    name = INTERPOLATIONS.get(2 if number is None else int(number), "unknown")
    if name not in ("bicubic", "bilinear", "nearest"):
        raise RecipeError(
            f"{what}: its image processor resizes by '{name}', which vlkd does not have. Set"
            " `resample` in its preprocessor_config.json to 0 (nearest), 2 (bilinear) or 3"
            " (bicubic)."
        )
    return name  # type: ignore[return-value]


def _three(values: float | Sequence[float]) -> list[float]:
    if isinstance(values, (int, float)):
        return [float(values)] * 3
    return [float(value) for value in values]
