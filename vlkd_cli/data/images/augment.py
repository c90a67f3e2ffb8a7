"""Random changes to training images: a region is chosen first, so that only as much is decoded as
needed, then colors and blur."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.images.resize import Box, crop, random_box, resize, shrink_for
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import (
    AreaRange,
    HueShift,
    ModalityName,
    NonNegative,
    NonNegativeInt,
    NonNegativeRange,
    PositiveInt,
    PositiveRange,
    Probability,
)


class Augment:
    """Base of the augmentations; every random choice comes from the generator that is handed in."""

    modality: ClassVar[ModalityName] = "image"
    pictures: ClassVar[int] = 1
    """How many pictures it makes of one image at once."""

    def size(self, expected: ImageInput) -> tuple[int, int]:
        """Height and width of its pictures; by default what the tower expects."""
        return expected.size_px

    def region(self, size: tuple[int, int], rng: random.Random) -> Box:
        """Which part of an image of this height and width is used."""
        raise NotImplementedError

    def finish(self, image: Tensor, rng: random.Random) -> Tensor:
        """Change `[3, H, W]` uint8 after it was resized to the tower's size."""
        raise NotImplementedError

    def shrink(self, box: Box, expected: ImageInput) -> int:
        """By how much a JPEG may be scaled down in decoding."""
        return shrink_for((box.height, box.width), self.size(expected))

    def apply(
        self,
        pixels: np.ndarray,
        full: tuple[int, int],
        box: Box,
        expected: ImageInput,
        rng: random.Random,
    ) -> Sequence[Tensor]:
        """Pixels (perhaps scaled down from `full`) to `pictures` of `[3, H, W]` uint8."""
        cut = resize(crop(pixels, box, full), self.size(expected), expected.interpolation)
        return (self.finish(cut, rng),)


class StandardAugment(Augment):
    """Random resized crop, then (each off by default) flip, color jitter, grayscale and blur.

    Args:
        scale: smallest and largest fraction of the area that is cropped.
        ratio: lowest and highest width over height of the region.
        flip: probability of mirroring left and right; wrong for captions that describe positions.
        brightness: largest relative change; the factor is sampled from `[1 - x, 1 + x]`.
        contrast: the same of the contrast.
        saturation: the same of the saturation.
        hue: largest turn of the hue, as a fraction of the color circle, up to 0.5.
        jitter: probability that the four above are applied at all.
        grayscale: probability of dropping the colors.
        blur: probability of a Gaussian blur.
        blur_sigma: lowest and highest standard deviation of the blur, in pixels of a 224 px image.
        solarize: probability of inverting every value from 128 on.
    """

    no_effect_by_key: ClassVar[Mapping[str, Mapping[object, tuple[str, ...]]]] = {
        "blur": {0.0: ("blur_sigma",)},
    }

    def __init__(
        self,
        *,
        scale: AreaRange = (0.9, 1.0),
        ratio: PositiveRange = (3 / 4, 4 / 3),
        flip: Probability = 0.0,
        brightness: NonNegative = 0.0,
        contrast: NonNegative = 0.0,
        saturation: NonNegative = 0.0,
        hue: HueShift = 0.0,
        jitter: Probability = 1.0,
        grayscale: Probability = 0.0,
        blur: Probability = 0.0,
        blur_sigma: NonNegativeRange = (0.1, 2.0),
        solarize: Probability = 0.0,
    ) -> None:
        self.scale, self.ratio, self.flip = (scale[0], scale[1]), (ratio[0], ratio[1]), flip
        self.brightness, self.contrast, self.saturation, self.hue, self.jitter = (
            brightness,
            contrast,
            saturation,
            hue,
            jitter,
        )
        self.grayscale, self.blur, self.blur_sigma = grayscale, blur, (blur_sigma[0], blur_sigma[1])
        self.solarize = solarize

    def region(self, size: tuple[int, int], rng: random.Random) -> Box:
        return random_box(size, scale=self.scale, ratio=self.ratio, rng=rng)

    def finish(self, image: Tensor, rng: random.Random) -> Tensor:
        if self.flip and rng.random() < self.flip:
            image = image.flip(-1)
        if (
            self.brightness or self.contrast or self.saturation or self.hue
        ) and rng.random() < self.jitter:
            image = self._jitter(image, rng)
        if self.grayscale and rng.random() < self.grayscale:
            from torchvision.transforms.v2 import functional

            image = functional.rgb_to_grayscale(image, num_output_channels=3)
        if self.blur and rng.random() < self.blur:
            image = self._blur(image, rng)
        if self.solarize and rng.random() < self.solarize:
            image = torch.where(image >= 128, 255 - image, image)
        return image

    def _jitter(self, image: Tensor, rng: random.Random) -> Tensor:
        from torchvision.transforms.v2 import functional

        changes: list[tuple[Callable[[Tensor, float], Tensor], float]] = [
            (change, rng.uniform(max(0.0, 1 - strength), 1 + strength))
            for change, strength in (
                (functional.adjust_brightness, self.brightness),
                (functional.adjust_contrast, self.contrast),
                (functional.adjust_saturation, self.saturation),
            )
            if strength
        ]
        if self.hue:
            changes.append((functional.adjust_hue, rng.uniform(-self.hue, self.hue)))
        rng.shuffle(changes)
        for change, amount in changes:
            image = change(image, amount)
        return image

    def _blur(self, image: Tensor, rng: random.Random) -> Tensor:
        from torchvision.transforms.v2 import functional

        size = max(image.shape[-2:])
        sigma = rng.uniform(*self.blur_sigma) * size / 224
        # A tenth of the image, as SimCLR takes it, and odd.
        kernel = max(3, size // 20 * 2 + 1)
        blurred: Tensor = functional.gaussian_blur(
            image, kernel_size=[kernel, kernel], sigma=[max(sigma, 1e-3)] * 2
        )
        return blurred


class SimCLRAugment(StandardAugment):
    """The strong augmentation of SimCLR and MoCo v2: small crops, flips, strong color jitter,
    grayscale and blur.

    Args:
        scale: smallest and largest fraction of the area that is cropped.
        flip: probability of mirroring left and right.
        strength: factor on the color jitter (0.4, 0.4, 0.4, 0.1).
        jitter: probability of the color jitter.
        grayscale: probability of dropping the colors.
        blur: probability of a Gaussian blur.

    Source: Chen et al., arXiv:2002.05709, appendix A, with the milder jitter of Chen et al.,
        arXiv:2003.04297, section 3.
    """

    def __init__(
        self,
        *,
        scale: AreaRange = (0.2, 1.0),
        flip: Probability = 0.5,
        strength: NonNegative = 1.0,
        jitter: Probability = 0.8,
        grayscale: Probability = 0.2,
        blur: Probability = 0.5,
    ) -> None:
        super().__init__(
            scale=scale,
            flip=flip,
            brightness=0.4 * strength,
            contrast=0.4 * strength,
            saturation=0.4 * strength,
            hue=min(0.1 * strength, 0.5),
            jitter=jitter,
            grayscale=grayscale,
            blur=blur,
        )


class BYOLAugment(StandardAugment):
    """The augmentation of BYOL: small crops, flips, strong color jitter, grayscale, blur, and
    solarization on request.

    BYOL's second view has `blur: 0.1, solarize: 0.2`.

    Args:
        scale: smallest and largest fraction of the area that is cropped.
        flip: probability of mirroring left and right.
        jitter: probability of the color jitter (0.4, 0.4, 0.2, 0.1).
        grayscale: probability of dropping the colors.
        blur: probability of a Gaussian blur.
        solarize: probability of inverting every value from 128 on.

    Source: Grill et al., BYOL, NeurIPS 2020, arXiv:2006.07733, appendix B, table 6.
    """

    def __init__(
        self,
        *,
        scale: AreaRange = (0.08, 1.0),
        flip: Probability = 0.5,
        jitter: Probability = 0.8,
        grayscale: Probability = 0.2,
        blur: Probability = 1.0,
        solarize: Probability = 0.0,
    ) -> None:
        super().__init__(
            scale=scale,
            flip=flip,
            brightness=0.4,
            contrast=0.4,
            saturation=0.2,
            hue=0.1,
            jitter=jitter,
            grayscale=grayscale,
            blur=blur,
            solarize=solarize,
        )


class QuarterTurnsAugment(StandardAugment):
    """Four pictures of one crop, turned clockwise by 0, 90, 180 and 270 degrees.

    Args:
        scale: smallest and largest fraction of the area that is cropped.
        flip: probability of mirroring left and right.

    Source: Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations,
    ICLR 2018, arXiv:1803.07728, section 2.1.
    """

    pictures = 4

    def __init__(self, *, scale: AreaRange = (0.08, 1.0), flip: Probability = 0.5) -> None:
        super().__init__(scale=scale, flip=flip)

    def apply(
        self,
        pixels: np.ndarray,
        full: tuple[int, int],
        box: Box,
        expected: ImageInput,
        rng: random.Random,
    ) -> Sequence[Tensor]:
        (picture,) = super().apply(pixels, full, box, expected, rng)
        return tuple(picture.rot90(-turns, (1, 2)) for turns in range(4))


_GRID = 3


class PatchGridAugment(StandardAugment):
    """The patches of a 3 x 3 grid on one square crop: the center first, then the others row by row.

    Each patch is cut from its cell at a random position, so that edges do not reveal where it is.

    Args:
        cell_px: side of a cell.
        jitter_px: by how much a patch is smaller than its cell.
        grayscale: probability of dropping the colors, whose aberration would reveal the position.

    Source: Doersch et al., Unsupervised Visual Representation Learning by Context Prediction,
    ICCV 2015, arXiv:1505.05192, section 3.
    """

    pictures = 9

    def __init__(
        self,
        *,
        cell_px: PositiveInt = 85,
        jitter_px: NonNegativeInt = 21,
        grayscale: Probability = 0.66,
    ) -> None:
        super().__init__(scale=(1.0, 1.0), ratio=(1.0, 1.0), grayscale=grayscale)
        if jitter_px >= cell_px:
            raise ValueError(f"jitter_px {jitter_px} leaves nothing of cells of {cell_px} px")
        self.cell_px, self.patch_px = cell_px, cell_px - jitter_px

    def size(self, expected: ImageInput) -> tuple[int, int]:
        return (self.patch_px, self.patch_px)

    def shrink(self, box: Box, expected: ImageInput) -> int:
        side = _GRID * self.cell_px
        return shrink_for((box.height, box.width), (side, side))

    def apply(
        self,
        pixels: np.ndarray,
        full: tuple[int, int],
        box: Box,
        expected: ImageInput,
        rng: random.Random,
    ) -> Sequence[Tensor]:
        side = _GRID * self.cell_px
        whole = resize(crop(pixels, box, full), (side, side), expected.interpolation)
        whole = self.finish(whole, rng)
        room = self.cell_px - self.patch_px
        patches = []
        for cell in range(_GRID**2):
            top, left = (offset * self.cell_px for offset in divmod(cell, _GRID))
            top, left = top + rng.randint(0, room), left + rng.randint(0, room)
            patches.append(whole[:, top : top + self.patch_px, left : left + self.patch_px])
        center = patches.pop(len(patches) // 2)
        return (center, *patches)


class NoAugment:
    """The tower's evaluation transform, also in training: the same picture in every epoch, so that
    features can be cached."""

    def __init__(self) -> None:
        pass
