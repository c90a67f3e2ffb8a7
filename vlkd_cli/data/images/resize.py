"""From pixels to what a tower expects: resizing, cropping and padding."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
        exact: stay within one grey level of PIL also where the image grows, which takes PIL's own
            resize; otherwise within two there.
    """
    if pixels.shape[:2] == size:
        return torch.from_numpy(pixels).permute(2, 0, 1)
    # PIL itself where ties of the nearest pixel, or a cubic's overshoot when growing, would round
    # differently in torch.
    if interpolation == "nearest" or (
        exact and (size[0] > pixels.shape[0] or size[1] > pixels.shape[1])
    ):
        resized = Image.fromarray(pixels).resize(
            size[::-1], Image.Resampling[interpolation.upper()]
        )
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
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
    """The evaluation transform of a tower: `[h, w, 3]` to `[3, H, W]`, both uint8.

    `shortest` scales until both sides cover the crop (the shorter side to `resize_px` where that is
    set) and crops the centre; `squash` ignores the aspect ratio; `longest` scales until both sides
    fit and pads with black.
    """
    height, width = pixels.shape[:2]
    target_height, target_width = expected.size_px
    if expected.resize == "squash":
        return resize(pixels, expected.size_px, expected.interpolation, exact=True)
    if expected.resize == "longest":
        factor = min(target_height / height, target_width / width)
        size = max(1, round(height * factor)), max(1, round(width * factor))
    elif expected.resize_px is not None or target_height == target_width:
        # torchvision's Resize(int): the longer side is truncated, not rounded.
        shorter = expected.resize_px or target_height
        size = (
            (shorter, int(shorter * width / height))
            if height <= width
            else (int(shorter * height / width), shorter)
        )
    else:
        factor = max(target_height / height, target_width / width)
        size = round(height * factor), round(width * factor)
    if size[0] * size[1] > _LARGEST_RESIZED:
        return centred(_middle(pixels, size, expected), expected.size_px)
    return centred(resize(pixels, size, expected.interpolation, exact=True), expected.size_px)


def _middle(pixels: np.ndarray, size: tuple[int, int], expected: ImageInput) -> Tensor:
    """The middle of `resize(pixels, size)`, for a strip of a picture (1 x 30,000 pixels) that would
    be gigabytes as a whole."""
    shown = min(size[0], expected.size_px[0]), min(size[1], expected.size_px[1])
    edges = []
    for own, part, full in zip(size, shown, pixels.shape, strict=False):
        start = round((own - part) / 2)
        edges.append((start * full / own, (start + part) * full / own))
    (top, bottom), (left, right) = edges
    resized = Image.fromarray(pixels).resize(
        shown[::-1],
        Image.Resampling[expected.interpolation.upper()],
        box=(left, top, right, bottom),
    )
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def centred(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the centre of `[3, h, w]`, or pad with black around it where it is smaller."""
    height, width = image.shape[-2:]
    if height < size[0] or width < size[1]:
        down, right = max(size[0] - height, 0), max(size[1] - width, 0)
        image = functional.pad(image, (right // 2, right - right // 2, down // 2, down - down // 2))
        height, width = image.shape[-2:]
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]]


def random_box(
    size: tuple[int, int], *, scale: tuple[float, float], ratio: tuple[float, float], draw: Any
) -> Box:
    """A region whose fraction of the area and aspect ratio are sampled uniformly (the ratio in its
    logarithm).

    Ten samples are tried; then the largest centred region whose ratio is allowed is taken, as
    torchvision's RandomResizedCrop does.

    Args:
        draw: a `random.Random`.
    """
    height, width = size
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(lowest, highest))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return Box(
                draw.randint(0, height - box_height),
                draw.randint(0, width - box_width),
                box_height,
                box_width,
            )
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = min(width, max(1, round(height * ratio[1])))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
