"""What a tower sees of the samples: pixels, tokens or cached features. Views run in the
loader's workers and survive pickling."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.images.augment import Augment
from vlkd_cli.data.images.decode import Picture
from vlkd_cli.data.images.resize import Box, fit
from vlkd_cli.data.keys import keys_of
from vlkd_cli.errors import DataError
from vlkd_cli.numerics.bfloat16 import as_float32
from vlkd_cli.preprocessing import ImageInput, TextInput
from vlkd_cli.recipe.modality import Table


class ImageView:
    """uint8 images `[B, 3, H, W]` at the tower's size; `[B, V, 3, H, W]` where a view has V > 1
    pictures. Standardized float32 where the tower resizes floats and there is no augmentation.

    Args:
        expected: what the tower expects.
        augment: random changes, seeded by each sample; None: the tower's evaluation transform, from
            the full-size pixels.
        copies: number of differently augmented copies of each image.
        by_draw: augment by the row and its draw (`Sample.draw_seed`) instead of by the position.
        alone: it decodes an image at the scale that it needs itself, whatever others need, and does
            not count for theirs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(
        self,
        expected: ImageInput,
        augment: Augment | None = None,
        *,
        copies: int = 1,
        by_draw: bool = False,
        alone: bool = False,
    ) -> None:
        self.expected, self.augment, self.copies = expected, augment, copies
        self.by_draw, self.alone = by_draw, alone
        self.pictures = copies * (1 if augment is None else augment.pictures)
        self.size_px = expected.size_px if augment is None else augment.size(expected)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        images = self.empty(len(samples))
        for image, sample in zip(images, samples, strict=True):
            render(sample, [self], [image])
        return images

    def empty(self, count: int) -> Tensor:
        """Room for the pictures of that many samples."""
        several = () if self.pictures == 1 else (self.pictures,)
        is_float = self.expected.rescales_first and self.augment is None
        kind = torch.float32 if is_float else torch.uint8
        return torch.empty(count, *several, 3, *self.size_px, dtype=kind)


class _Plan(NamedTuple):
    """What one copy of a view shows of an image."""

    view: ImageView
    room: Tensor
    box: Box | None
    rng: random.Random
    shrink: int


def render(
    sample: Sample,
    views: Sequence[ImageView],
    rooms: Sequence[Tensor],
    salts: Sequence[int] | None = None,
) -> None:
    """Write the sample's pictures as each view shows them.

    The image is decoded once, at the largest scale that one of them needs; views that decode alone
    have their own scale.

    Args:
        rooms: for each view, one sample's part of `ImageView.empty`.
        salts: a number for each view; views of one number show the same regions, others their own.

    Raises:
        Broken: the image cannot be read.
    """
    assert sample.image is not None
    picture = Picture(sample.image, salvage=sample.salvage)
    full = picture.height, picture.width
    shared, plans = 8, []
    for view, room, salt in zip(views, rooms, salts or [0] * len(views), strict=True):
        apart = room.view(view.copies, -1, *room.shape[-3:])
        for copy in range(view.copies):
            seed = sample.draw_seed if view.by_draw else sample.seed
            rng = random.Random(seed_of(seed, salt, copy))
            augment = view.augment
            box = None if augment is None else augment.region(full, rng)
            if augment is None or box is None:
                scale = 1
            else:
                scale = augment.shrink(box, view.expected)
            if not view.alone:
                shared = min(shared, scale)
            plans.append(_Plan(view, apart[copy], box, rng, scale))
    scales = {
        view: min((plan.shrink for plan in plans if plan.view is view), default=1)
        if view.alone
        else shared
        for view in views
    }
    decoded = {scale: picture.pixels(scale) for scale in dict.fromkeys(scales.values())}
    for view, room, box, rng, _ in plans:
        pixels = decoded[scales[view]]
        shown: Sequence[Tensor] = (
            (fit(pixels, view.expected),)
            if view.augment is None or box is None
            else view.augment.apply(pixels, full, box, view.expected, rng)
        )
        for target, image in zip(room, shown, strict=True):
            target.copy_(image)


def seed_of(sample: int, view: int, copy: int, purpose: int = 0) -> int:
    """Seed of the random choices of one copy of a view of a sample.

    Args:
        view: 0 for the main one, else a number derived from its name.
        purpose: 0 for the region and what follows it, another number for other choices.
    """
    return sample * 1_000_003 + view + (copy << 72) + (purpose << 96)


class TextView:
    """One text of each sample, tokenized.

    Args:
        tokenize: strings to a TextInput (or a tensor); survives pickling.
        text: which text: the captions, or another by its name.
        required: whether a sample without it is broken; otherwise it counts as empty.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def __init__(
        self,
        tokenize: Callable[[Sequence[str]], TextInput | Tensor],
        text: str = MAIN,
        *,
        required: bool = True,
    ) -> None:
        self.tokenize, self.text, self.required = tokenize, text, required

    def __call__(self, samples: Sequence[Sample]) -> TextInput | Tensor:
        return self.tokenize([sample.wording(self.text) for sample in samples])


CAPTION_KEYS = "caption keys"
"""Key of `Batch.inputs` for what `keys_of_captions` gives."""


def keys_of_text(name: str) -> str:
    """Key of `Batch.inputs` for the keys of another text; of a view it is the captions'."""
    return f"{CAPTION_KEYS}@{name}"


def keys_of_captions(captions: Sequence[str]) -> Tensor:
    """`[B]` int64, equal for captions that differ in white space only; -1 for empty ones."""
    return torch.from_numpy(keys_of(captions))


class KeyView:
    """Keys of the chosen captions out of a table, where no caption is read.

    Args:
        keys: of all texts of the reader, int64.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    table: Table = "text"
    text = MAIN
    required = True

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        return self.gather(np.array([each.first_row + each.text(MAIN) for each in samples]))

    def gather(self, rows: np.ndarray) -> Tensor:
        """Keys of these texts."""
        return torch.from_numpy(self.keys[rows])


class FeatureView:
    """Cached features `[B, D]` float32 out of a memory-mapped table of float32 or bfloat16.

    Args:
        path: a `.npy` file, one row per sample or per text of the reader, in its order.
        table: which of the two.
        text: of texts, which one.
        required: whether a sample without it is broken; otherwise its features are any.
    """

    def __init__(
        self, path: str | Path, table: Table, text: str = MAIN, *, required: bool = True
    ) -> None:
        self.path, self.table, self.text, self.required = Path(path), table, text, required
        # Of other texts some samples may have none.
        self.needs = frozenset({"text"}) if text != MAIN else frozenset()
        self._rows: np.ndarray | None = None
        self.num_rows, self.width = self._mapped().shape

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        rows = [
            sample.index if self.table == "sample" else sample.first_row + sample.text(self.text)
            for sample in samples
        ]
        return self.gather(np.array(rows, dtype=np.int64).clip(max=self.num_rows - 1))

    def gather(self, rows: np.ndarray) -> Tensor:
        """The features of these rows of its table."""
        return torch.from_numpy(as_float32(self._mapped()[rows]))

    def _mapped(self) -> np.ndarray:
        if self._rows is None:
            try:
                # The plain array over the map: numpy.memmap's own indexing costs several
                # microseconds a call.
                self._rows = np.asarray(np.load(self.path, mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cached features {self.path} cannot be read ({error}). Delete the file; it"
                    " will be computed again."
                ) from error
        return self._rows

    def __getstate__(self) -> dict[str, object]:
        # A mapped array would be pickled with its content.
        return {**self.__dict__, "_rows": None}
