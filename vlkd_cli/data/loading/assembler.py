"""One batch out of a reader with random access: which rows, which captions, decoded and
tokenised."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Batch, Broken, Sample, Skipped, View
from vlkd_cli.data.loading.order import Order
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.workers import Request
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import FeatureView, ImageView, draw_images
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import TextInput

_REPLACEMENTS = (
    50  # tries for one row; more than half of the data would have to be broken for these to fail
)


class Assembler:
    """Makes the batches of one rank; picklable, without state that a batch depends on.

    Args:
        reader: the data.
        views: what each tower sees.
        order: the epoch's order of rows.
        batch_size: rows of this rank.
        seed: of captions, augmentation and replacements.
        rank: of this process.
        world_size: number of ranks.
        broken: rows that are known to be unreadable; they are replaced without being tried.
    """

    def __init__(
        self,
        reader: Reader,
        views: Mapping[str, View],
        order: Order,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        broken: Mapping[int, Skipped] | None = None,
    ) -> None:
        self.reader, self.views, self.order = reader, dict(views), order
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.broken = dict(broken or {})
        self.views_of_samples = ViewsOfSamples(self.views)
        self.reads_samples = any(not isinstance(view, FeatureView) for view in self.views.values())

    def __getitem__(self, request: Request) -> Batch:
        positions = self._positions(request.number)
        rows = self.order.rows(request.epoch, int(positions[0]), int(positions[-1]) + 1)
        choices = hashed(self.seed, request.epoch, rows) >> np.uint64(1)
        if not self.reads_samples:
            return (
                self._readable(request.epoch, positions, rows, choices)
                if self.broken
                else self._gathered(rows, choices)
            )
        seeds = hashed(self.seed, request.epoch, positions, 1) >> np.uint64(1)
        drawn = Drawn(self.views_of_samples, len(rows))
        for slot, (row, choice, seed) in enumerate(
            zip(rows.tolist(), choices.tolist(), seeds.tolist(), strict=True)
        ):
            self._draw(drawn, slot, row, choice, seed)
        return drawn.batch()

    def exactly(self, rows: np.ndarray, *, skip: bool) -> Batch:
        """These rows with their first captions; broken ones raise, or are left out."""
        if not self.reads_samples:
            return self._gathered(rows, np.zeros(len(rows), dtype=np.uint64))
        drawn = Drawn(self.views_of_samples, len(rows))
        slot = 0
        for row in rows.tolist():
            try:
                drawn.put(slot, self._sample(row, 0, 0))
                slot += 1
            except Broken as broken:
                if not skip:
                    raise DataError(
                        f"{self.reader.name(row)}: {broken}. Repair the file or take it out of the"
                        " data."
                    ) from None
                drawn.skipped.append(Skipped(self.reader.name(row), str(broken)))
        return drawn.batch(slot)

    def _positions(self, number: int) -> np.ndarray:
        """Positions of this rank's rows in the epoch; the last step of an epoch may hold fewer rows
        per rank."""
        start = number * self.batch_size * self.world_size
        rest = min(len(self.order) - start, self.batch_size * self.world_size)
        own = -(-rest // self.world_size)
        return np.arange(start + self.rank * own, start + (self.rank + 1) * own, dtype=np.int64)

    def _gathered(self, rows: np.ndarray, choices: np.ndarray) -> Batch:
        """A batch of stored features only: no sample is looked at."""
        captions = rows
        if any(
            isinstance(view, FeatureView) and view.table == "text" for view in self.views.values()
        ):
            captions = self.reader.caption_starts(rows)
            counts = self.reader.caption_starts(rows + 1) - captions
            captions = captions + (choices % np.maximum(counts, 1).astype(np.uint64)).astype(
                np.int64
            )
        inputs: dict[str, Tensor | TextInput] = {
            key: view.gather(rows, captions)
            for key, view in self.views.items()
            if isinstance(view, FeatureView)
        }
        return Batch(inputs, torch.from_numpy(rows), torch.from_numpy(self.reader.labels_of(rows)))

    def _readable(
        self, epoch: int, positions: np.ndarray, rows: np.ndarray, choices: np.ndarray
    ) -> Batch:
        """A batch of stored features with the rows that have none replaced, as `_draw` does it."""
        rows, skipped = rows.copy(), []
        for slot in np.flatnonzero(np.isin(rows, list(self.broken))).tolist():
            seed = int(hashed(self.seed, epoch, positions[slot], 1)[0] >> np.uint64(1))
            for attempt in range(_REPLACEMENTS):
                if (known := self.broken.get(int(rows[slot]))) is None:
                    break
                skipped.append(known)
                rows[slot] = self.order.replacement(int(rows[slot]), seed, attempt)
            else:
                raise _all_broken(skipped[0])
        batch = self._gathered(rows, choices)
        batch.skipped.extend(skipped)
        return batch

    def _draw(self, drawn: Drawn, slot: int, row: int, choice: int, seed: int) -> None:
        for attempt in range(_REPLACEMENTS):
            try:
                return drawn.put(slot, self._sample(row, choice, seed))
            except Broken as broken:
                drawn.skipped.append(Skipped(self.reader.name(row), str(broken)))
                row = self.order.replacement(row, seed, attempt)
        raise _all_broken(drawn.skipped[0])

    def _sample(self, row: int, choice: int, seed: int) -> Sample:
        reader, needs = self.reader, self.views_of_samples
        if row in self.broken:
            raise Broken(self.broken[row].reason)
        image = reader.image(row) if needs.images else None
        captions = reader.captions(row) if needs.captions else ()
        caption, caption_row = choice % len(captions) if captions else 0, 0
        if needs.features:
            start = reader.caption_start(row)
            caption = (
                caption if captions else choice % max(reader.caption_start(row + 1) - start, 1)
            )
            caption_row = start + caption
        return Sample(
            row, image, captions, caption, caption_row, reader.label(row), "", seed, reader.salvages
        )


def _all_broken(first: Skipped) -> DataError:
    return DataError(
        f"{_REPLACEMENTS} samples in a row are broken, the first: {first.name}: {first.reason}."
        " Check the data and its paths."
    )


class ViewsOfSamples:
    """The views of a batch, sorted by what they need."""

    def __init__(self, views: Mapping[str, View]) -> None:
        self.drawn = {key: view for key, view in views.items() if isinstance(view, ImageView)}
        self.others = {key: view for key, view in views.items() if not isinstance(view, ImageView)}
        # Towers that look at the same view of a sample see the same region of it; other views draw
        # their own.
        self.salts = [
            zlib.crc32(key.partition("@")[2].encode()) if "@" in key else 0 for key in self.drawn
        ]
        self.images = any(view.needs_image for view in views.values())
        self.captions = any(view.needs_captions for view in views.values())
        self.features = any(isinstance(view, FeatureView) for view in views.values())


class Drawn:
    """A batch that is being filled."""

    def __init__(self, views: ViewsOfSamples, size: int) -> None:
        self.views = views
        self.skipped: list[Skipped] = []
        self.images = [view.empty(size) for view in views.drawn.values()]
        self.samples: list[Any] = [None] * size

    def put(self, slot: int, sample: Sample) -> None:
        """Decode a sample into its row.

        Raises:
            Broken: it cannot be read.
        """
        if self.views.images and sample.image is None:
            raise Broken(sample.problem or "has no image")
        if self.views.captions and (
            not sample.captions or not sample.captions[sample.caption].strip()
        ):
            raise Broken(sample.problem or "has no caption")
        if self.images:
            for images, image in zip(
                self.images,
                draw_images(sample, list(self.views.drawn.values()), self.views.salts),
                strict=True,
            ):
                images[slot].copy_(image)
        self.samples[slot] = sample

    def batch(self, size: int | None = None) -> Batch:
        samples: Sequence[Sample] = self.samples[:size]
        inputs: dict[str, Tensor | TextInput] = {
            key: images[:size] for key, images in zip(self.views.drawn, self.images, strict=True)
        }
        if samples:
            inputs |= {key: view(samples) for key, view in self.views.others.items()}
        indices = torch.tensor([sample.index for sample in samples], dtype=torch.int64)
        return Batch(
            inputs,
            indices,
            torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            self.skipped,
        )
