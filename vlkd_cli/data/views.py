"""What a tower sees of the drawn samples: pixels, tokens or stored features. Views run in the
loader's workers and survive pickling."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.images.augment import Augment
from vlkd_cli.data.images.decode import Box, Picture, fit
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import ImageInput, TextInput


class ImageView:
    """uint8 images `[B, 3, H, W]` at the tower's size.

    Args:
        expected: what the tower expects.
        augment: random changes, seeded by each sample; None: the tower's evaluation transform, from
            the full-size pixels.
    """

    needs_image = True
    needs_captions = False

    def __init__(self, expected: ImageInput, augment: Augment | None = None) -> None:
        self.expected, self.augment = expected, augment

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        images = self.empty(len(samples))
        for image, sample in zip(images, samples, strict=True):
            image.copy_(draw_images(sample, [self])[0])
        return images

    def empty(self, count: int) -> Tensor:
        """Room for that many images."""
        return torch.empty(count, 3, *self.expected.size_px, dtype=torch.uint8)


def draw_images(
    sample: Sample, views: Sequence[ImageView], salts: Sequence[int] | None = None
) -> list[Tensor]:
    """The sample's picture as each view sees it, `[3, H, W]` uint8, decoded once at the largest
    scale that a view needs.

    Args:
        salts: a number for each view; views of the same number draw the same region, others draw
            their own.

    Raises:
        Broken: the picture cannot be read.
    """
    assert sample.image is not None
    picture = Picture(sample.image, salvage=sample.salvage)
    full = picture.height, picture.width
    shrink = 8
    planned: list[tuple[Augment, Box, random.Random] | None] = []
    for view, salt in zip(views, salts or [0] * len(views), strict=True):
        if view.augment is None:
            shrink = 1
            planned.append(None)
            continue
        draw = random.Random(sample.seed * 1_000_003 + salt)
        box = view.augment.region(full, draw)
        shrink = min(shrink, view.augment.shrink(box, view.expected))
        planned.append((view.augment, box, draw))
    pixels = picture.pixels(shrink)
    images = []
    for view, plan in zip(views, planned, strict=True):
        if plan is None:
            images.append(fit(pixels, view.expected))
        else:
            augment, box, draw = plan
            images.append(augment.apply(pixels, full, box, view.expected, draw))
    return images


class TextView:
    """The drawn caption of each sample, tokenised.

    Args:
        tokenize: strings to a TextInput; survives pickling.
    """

    needs_image = False
    needs_captions = True

    def __init__(self, tokenize: Callable[[Sequence[str]], TextInput]) -> None:
        self.tokenize = tokenize

    def __call__(self, samples: Sequence[Sample]) -> TextInput:
        return self.tokenize([sample.captions[sample.caption] for sample in samples])


class FeatureView:
    """Stored features `[B, D]` float32 out of a memory-mapped table.

    Args:
        path: a `.npy` file, one row per image or per caption of the reader, in its order.
        table: which of the two.
    """

    needs_image = False
    needs_captions = False

    def __init__(self, path: str | Path, table: Literal["sample", "text"]) -> None:
        self.path, self.table = Path(path), table
        self._rows: np.ndarray | None = None
        self.num_rows, self.width = self._mapped().shape

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        images = np.fromiter(
            (sample.index for sample in samples), dtype=np.int64, count=len(samples)
        )
        captions = np.fromiter(
            (sample.caption_row for sample in samples), dtype=np.int64, count=len(samples)
        )
        return self.gather(images, captions)

    def gather(self, image_rows: np.ndarray, caption_rows: np.ndarray) -> Tensor:
        """The features of these rows of its table; the other argument is ignored."""
        rows = self._mapped()[image_rows if self.table == "sample" else caption_rows]
        return torch.from_numpy(rows.astype(np.float32, copy=False))

    def _mapped(self) -> np.ndarray:
        if self._rows is None:
            try:
                # The plain array over the map: numpy.memmap's own indexing costs several
                # microseconds a call.
                self._rows = np.asarray(np.load(self.path, mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"stored features {self.path} cannot be read ({error}). Delete the file; it is"
                    " computed anew."
                ) from error
        return self._rows

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be pickled with its content.
        return {**self.__dict__, "_rows": None}
