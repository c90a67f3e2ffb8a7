"""From pixels to what a tower expects: resizing, cropping and padding."""

from __future__ import annotations

import math
import random
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vlkd_cli.preprocessing import ImageInput

_LARGEST_RESIZED = 1 << 26  # pixels


class Box(NamedTuple):
    """A region of an image, in pixels of its full size."""

    top: int
    left: int
    height: int
    width: int


def shrink_for(size: tuple[int, int], target: tuple[int, int]) -> int:
    """By how much a JPEG region of `size` (height, width) may be scaled in decoding so that it is
    still not below `target`."""
    factor = min(size[0] / target[0], size[1] / target[1])
    return 8 if factor >= 8 else 4 if factor >= 4 else 2 if factor >= 2 else 1


def resize(
    pixels: np.ndarray,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    *,
    exact: bool = False,
) -> Tensor:
    """Pixels `[h, w, 3]` uint8 to `[3, height, width]` uint8, antialiased.

    Args:
        exact: stay within one gray level of PIL also where the image grows, which takes PIL's own
            resize; otherwise within two there.
    """
    if pixels.shape[:2] == size:
        return torch.from_numpy(pixels).permute(2, 0, 1)
    # PIL itself where ties of the nearest pixel, or a cubic's overshoot when growing, would round
    # differently in torch.
    if interpolation == "nearest" or (
        exact and (size[0] > pixels.shape[0] or size[1] > pixels.shape[1])
    ):
        return _by_pil(pixels, size, interpolation)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return functional.interpolate(
        image, size=size, mode=interpolation, antialias=True, align_corners=False
    )[0]


def crop(pixels: np.ndarray, box: Box, full: tuple[int, int]) -> np.ndarray:
    """The box, given in pixels of the full size, out of pixels that may be scaled down."""
    height, width = pixels.shape[:2]
    if (height, width) == full:
        return pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    vertical, horizontal = height / full[0], width / full[1]
    top, left = round(box.top * vertical), round(box.left * horizontal)
    bottom, right = (
        round((box.top + box.height) * vertical),
        round((box.left + box.width) * horizontal),
    )
    return pixels[
        min(top, height - 1) : max(bottom, top + 1), min(left, width - 1) : max(right, left + 1)
    ]


def fit(pixels: np.ndarray, expected: ImageInput) -> Tensor:
    """The evaluation transform of a tower: `[h, w, 3]` uint8 to `[3, H, W]`, uint8; standardized
    float32 where the tower `rescales_first`.

    `shortest` scales until both sides cover the crop (the shorter side to `resize_px` where that is
    set) and crops the center; `squash` ignores the aspect ratio; `longest` scales until both sides
    fit and pads with black; `none` crops alone.
    """
    size = resized_size((pixels.shape[0], pixels.shape[1]), expected)
    if size[0] * size[1] > _LARGEST_RESIZED:
        image = _middle(pixels, size, expected)
    else:
        image = _resized(pixels, size, expected)
    image = centered(image, expected.size_px, rule=expected.crop, backend=expected.backend)
    if not expected.rescales_first:
        return image
    # Only now standardized: padding is black.
    scaled = image if image.is_floating_point() else image / 255
    mean, std = (
        scaled.new_tensor(values).view(3, 1, 1) for values in (expected.mean, expected.std)
    )
    return ((scaled.flip(0) if expected.channels == "bgr" else scaled) - mean) / std


def resized_size(size: tuple[int, int], expected: ImageInput) -> tuple[int, int]:
    """Height and width that a picture is resized to before the center crop or the padding."""
    height, width = size
    target_height, target_width = expected.size_px
    if expected.resize == "none":
        return size
    if expected.resize == "squash":
        sides = expected.resize_px or expected.size_px
        return sides if isinstance(sides, tuple) else (sides, sides)
    if expected.resize == "longest":
        factor = min(target_height / height, target_width / width)
        return max(1, round(height * factor)), max(1, round(width * factor))
    if isinstance(expected.resize_px, int) or target_height == target_width:
        # torchvision's Resize(int): the longer side is truncated, not rounded.
        shorter = expected.resize_px if isinstance(expected.resize_px, int) else target_height
        if height <= width:
            return shorter, int(shorter * width / height)
        return int(shorter * height / width), shorter
    factor = max(target_height / height, target_width / width)
    return round(height * factor), round(width * factor)


def _resized(pixels: np.ndarray, size: tuple[int, int], expected: ImageInput) -> Tensor:
    if expected.backend == "pil":
        return _by_pil(pixels, size, expected.interpolation)
    if expected.backend is None:
        return resize(pixels, size, expected.interpolation, exact=True)
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize as resize_by_torchvision

    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if expected.rescales_first:
        image = image * (1 / 255)
    name = expected.interpolation.upper()
    mode = InterpolationMode["NEAREST_EXACT" if name == "NEAREST" else name]
    resized: Tensor = resize_by_torchvision(image, list(size), interpolation=mode, antialias=True)
    return resized


def _by_pil(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> Tensor:
    resized = Image.fromarray(pixels).resize(size[::-1], Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _middle(pixels: np.ndarray, size: tuple[int, int], expected: ImageInput) -> Tensor:
    """The middle of `resize(pixels, size)`, for a strip of a picture (1 x 30,000 pixels) that would
    be gigabytes as a whole."""
    shown = min(size[0], expected.size_px[0]), min(size[1], expected.size_px[1])
    edges = []
    for own, part, full in zip(size, shown, pixels.shape, strict=False):
        start = crop_start(own, part, expected.crop)
        edges.append((start * full / own, (start + part) * full / own))
    (top, bottom), (left, right) = edges
    resized = Image.fromarray(pixels).resize(
        shown[::-1],
        Image.Resampling[expected.interpolation.upper()],
        box=(left, top, right, bottom),
    )
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def centered(
    image: Tensor,
    size: tuple[int, int],
    *,
    rule: Literal["round", "floor"] = "round",
    backend: Literal["pil", "torchvision"] | None = None,
) -> Tensor:
    """Crop the center of `[3, h, w]`, or pad with black around it where it is smaller.

    Args:
        rule: how half a pixel is rounded, see `ImageInput.crop`.
        backend: with `pil`, the odd row and column of padding are at the top and left, as the slow
            processors of transformers have them; else at the bottom and right.
    """
    height, width = image.shape[-2:]
    if height < size[0] or width < size[1]:
        down, right = max(size[0] - height, 0), max(size[1] - width, 0)
        above, before = down // 2, right // 2
        if backend == "pil":
            above, before = down - above, right - before
        image = functional.pad(image, (before, right - before, above, down - above))
        height, width = image.shape[-2:]
    top, left = crop_start(height, size[0], rule), crop_start(width, size[1], rule)
    return image[:, top : top + size[0], left : left + size[1]]


def crop_start(full: int, part: int, rule: Literal["round", "floor"]) -> int:
    """The first row or column of a center crop."""
    return (full - part) // 2 if rule == "floor" else round((full - part) / 2)


def random_box(
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> Box:
    """A region whose fraction of the area and aspect ratio are sampled uniformly (the ratio in its
    logarithm).

    Ten samples are tried; then the largest centered region whose ratio is allowed is taken, as
    torchvision's RandomResizedCrop does.
    """
    height, width = size
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(lowest, highest))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return Box(
                rng.randint(0, height - box_height),
                rng.randint(0, width - box_width),
                box_height,
                box_width,
            )
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
