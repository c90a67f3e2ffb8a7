"""What an encoder expects of its input: declared by its builder, respected by the loader."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Resizing = Literal["shortest", "squash", "longest", "none"]


class ImageInput(NamedTuple):
    """How an image becomes an image tower's input for evaluation.

    The loader delivers uint8 RGB `[B, 3, H, W]`; the tower scales to 0..1 and standardizes with
    `mean` and `std` on its own device.
    """

    size_px: tuple[int, int] = (224, 224)
    """Height and width that the tower sees."""
    resize_px: int | tuple[int, int] | None = None
    """Length of the shorter side before the center crop, or height and width with `squash`; None:
    the crop's size."""
    resize: Resizing = "shortest"
    """Shorter side then center crop; both sides at once, then center crop; longer side then
    padding; or center crop alone."""
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    crop: Literal["round", "floor"] = "round"
    """Top of the center crop: (H - h) / 2, half to even as torchvision, or rounded down as
    transformers. They differ by a pixel where H - h is 3 mod 4."""
    backend: Literal["pil", "torchvision"] | None = None
    """Whose resize, which differ by a gray level; None: within one level of PIL, whichever is
    faster."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order in which the encoder takes the channels; mean and std are in it."""
    rescales_first: bool = False
    """Resize the floats 0..1 instead of 256 gray levels. The loader then delivers standardized
    float32 for the evaluation transform."""

    def at_size(self, size_px: int) -> ImageInput:
        """The same for square pictures of another size."""
        resize_px = self.resize_px
        if isinstance(resize_px, tuple):
            height, width = (
                round(side * size_px / own)
                for side, own in zip(resize_px, self.size_px, strict=True)
            )
            resize_px = height, width
        elif resize_px is not None:
            resize_px = round(resize_px * size_px / min(self.size_px))
        return self._replace(size_px=(size_px, size_px), resize_px=resize_px)


class MeshInput(NamedTuple):
    """What a mesh tower reads of a point cloud in the unit sphere: float32 `[B, points, 3]`, or
    `[B, points, 6]` with the normals."""

    points: int = 1024
    normals: bool = False


TextInput = dict[str, Tensor]
"""`input_ids` `[B, T]` int64 and, for models that want it, `attention_mask` `[B, T]`; T is the
longest caption of the batch where the encoder allows it."""

Inputs = Tensor | TextInput
"""A batch as towers take it: images `[B, 3, H, W]`, points of meshes, cached rows, or a
TextInput."""

Tokenizer = Callable[[Sequence[str]], TextInput]
"""Strings to a TextInput. Runs in loader workers: it survives pickling and touches no device."""

InputSpec = ImageInput | MeshInput | Tokenizer
"""What an encoder expects of its input: how pictures are prepared, which points of a mesh are read,
or what tokenizes texts."""


def described_input(expected: InputSpec) -> str:
    """What determines how samples are prepared; empty for texts, whose tokens show it."""
    return "" if callable(expected) else repr(expected)


class Grid(NamedTuple):
    """The grid of an image encoder's tokens: one position for each patch of the last layer, row by
    row.

    Class and register tokens have no position.
    """

    rows: int
    columns: int
    patch_px: int
    """Side of the square of pixels that a position covers."""

    @property
    def num_places(self) -> int:
        return self.rows * self.columns


def standardize(images: Tensor, expected: ImageInput) -> Tensor:
    """uint8 images scaled to 0..1 and standardized, as float32; float images pass as they are.

    Args:
        images: `[B, 3, H, W]`.
    """
    if images.is_floating_point():
        return images
    # Copies from the host would wait for a GPU at every step; a compiled graph has constants.
    is_copied = images.is_cuda and not torch.compiler.is_compiling()
    of_device = _scaling if is_copied else _scaling.__wrapped__
    mean, std = of_device(expected.mean, expected.std, images.device)
    if expected.channels == "bgr":
        images = images.flip(1)
    # In place: three images' worth of memory traffic less.
    return images.to(torch.float32).sub_(mean).div_(std)


@functools.lru_cache(maxsize=64)
def _scaling(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the values 0 to 255, `[1, 3, 1, 1]`."""
    both = torch.tensor([mean, std], dtype=torch.float32, device=device) * 255
    first, second = both.view(2, 1, 3, 1, 1)
    return first, second
