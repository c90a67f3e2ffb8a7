"""One batch out of a reader with random access: which rows, which captions, decoded and
tokenized."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import Batch, Broken, Lost, Sample, Skipped, View
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.loading.choices import choices as caption_choices
from vlkd_cli.data.loading.choices import chosen_texts
from vlkd_cli.data.loading.order import Order
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.workers import Request
from vlkd_cli.data.masks import ViewMask
from vlkd_cli.data.modality import MODALITIES, TextModality
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import FeatureView, ImageView, KeyView, TextView, render, seed_of
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import TextInput
from vlkd_cli.recipe.address import MAIN_VIEW

_REPLACEMENTS = (
    50  # tries for one row; more than half of the data would have to be broken for these to fail
)


class Assembler:
    """Makes the batches of one rank; picklable, without state that a batch depends on.

    Args:
        reader: the data.
        views: what each tower sees, by "tower" or "tower@input".
        order: the epoch's order of rows.
        batch_size: rows of this rank.
        seed: of the choice of texts, augmentation, masks and replacements.
        masks: by view.
        rank: of this process.
        world_size: number of ranks.
        broken: rows that are known to be unreadable; they are replaced without being tried.
        columns: of the data, by name, one entry for each row; batches get their rows' entries.
    """

    def __init__(
        self,
        reader: Reader,
        views: Mapping[str, View],
        order: Order,
        *,
        batch_size: int,
        seed: int,
        masks: Mapping[str, ViewMask] | None = None,
        rank: int = 0,
        world_size: int = 1,
        broken: Mapping[int, Skipped] | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.reader, self.order, self.columns = reader, order, dict(columns or {})
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.broken = dict(broken or {})
        self.views = SortedViews(views, masks or {})

    @property
    def reads_samples(self) -> bool:
        """Whether a sample is looked at; otherwise rows of tables are enough."""
        views = self.views
        return bool(views.modalities or views.masks) or views.others.keys() != views.features.keys()

    def __getitem__(self, request: Request) -> Batch:
        positions = self._positions(request.number)
        rows = self.order.rows(request.epoch, int(positions[0]), int(positions[-1]) + 1)
        choices = caption_choices(self.seed, request.epoch, rows)
        if not self.reads_samples:
            return (
                self._readable(request.epoch, positions, rows, choices)
                if self.broken
                else self._gathered(rows, choices)
            )
        seeds = hashed(self.seed, request.epoch, positions, 1) >> np.uint64(1)
        filling = Filling(self.views, len(rows))
        for slot, (row, choice, seed) in enumerate(
            zip(rows.tolist(), choices.tolist(), seeds.tolist(), strict=True)
        ):
            self._put(filling, slot, row, choice, seed)
        return self._with_targets(filling.batch())

    def exactly(self, rows: np.ndarray, *, skip: bool) -> Batch:
        """These rows with their first captions; broken ones raise, or are left out."""
        if not self.reads_samples:
            return self._gathered(rows, np.zeros(len(rows), dtype=np.uint64))
        filling = Filling(self.views, len(rows))
        slot = 0
        for row in rows.tolist():
            try:
                filling.put(slot, self._sample(row, 0, 0))
                slot += 1
            except Broken as broken:
                if not skip:
                    raise DataError(
                        f"{self.reader.name(row)}: {broken}. Repair the file or take it out of the"
                        " data."
                    ) from None
                filling.skipped.append(Skipped(self.reader.name(row), str(broken)))
        return self._with_targets(filling.batch(slot))

    def _positions(self, number: int) -> np.ndarray:
        """Positions of this rank's rows in the epoch; the last step of an epoch may hold fewer rows
        per rank."""
        start = number * self.batch_size * self.world_size
        rest = min(len(self.order) - start, self.batch_size * self.world_size)
        own = -(-rest // self.world_size)
        return np.arange(start + self.rank * own, start + (self.rank + 1) * own, dtype=np.int64)

    def _gathered(self, rows: np.ndarray, choices: np.ndarray) -> Batch:
        """A batch of cached features only: no sample is looked at."""
        texts = rows
        if any(view.table != "sample" for view in self.views.features.values()):
            texts, _ = chosen_texts(self.reader, rows, choices)
        inputs: dict[str, Tensor | TextInput] = {
            key: view.gather(rows if view.table == "sample" else texts)
            for key, view in self.views.features.items()
        }
        labels = torch.from_numpy(self.reader.labels_of(rows))
        return self._with_targets(Batch(inputs, torch.from_numpy(rows), labels))

    def _readable(
        self, epoch: int, positions: np.ndarray, rows: np.ndarray, choices: np.ndarray
    ) -> Batch:
        """A batch of cached features with the rows that have none replaced, as `_put` does it."""
        rows, skipped = rows.copy(), []
        for slot in np.flatnonzero(np.isin(rows, list(self.broken))).tolist():
            seed = int(hashed(self.seed, epoch, positions[slot], 1)[0] >> np.uint64(1))
            for attempt in range(_REPLACEMENTS):
                row = int(rows[slot])
                if (known := self.broken.get(row)) is None:
                    break
                skipped.append(known)
                rows[slot] = self.order.replacement(row, seed, attempt)
            else:
                raise _all_broken(skipped[0])
        batch = self._gathered(rows, choices)
        batch.skipped.extend(skipped)
        return batch

    def _put(self, filling: Filling, slot: int, row: int, choice: int, seed: int) -> None:
        for attempt in range(_REPLACEMENTS):
            try:
                return filling.put(slot, self._sample(row, choice, seed))
            except Broken as broken:
                filling.skipped.append(Skipped(self.reader.name(row), str(broken)))
                row = self.order.replacement(row, seed, attempt)
        raise _all_broken(filling.skipped[0])

    def _sample(self, row: int, choice: int, seed: int) -> Sample:
        reader, views = self.reader, self.views
        if row in self.broken:
            raise Broken(self.broken[row].reason)
        spans = {}
        if views.texts and (reader.text_names or not views.reads_captions):
            spans = {name: reader.text_span(row, name) for name in views.texts}
        sample = Sample(
            row,
            spans=spans,
            choice=choice,
            first_row=reader.caption_start(row) if views.features else 0,
            label=reader.label(row),
            seed=seed,
            salvage=reader.salvages,
            sources=(
                reader.caption_sources(row)
                if reader.weighs_captions and MAIN in views.texts
                else None
            ),
        )
        for modality in views.modalities:
            modality.read(sample, reader)
        return sample

    def _with_targets(self, batch: Batch) -> Batch:
        rows = batch.indices.numpy()
        if self.columns:
            columns = {name: torch.from_numpy(all_[rows]) for name, all_ in self.columns.items()}
            batch = replace(batch, columns=columns)
        if not self.reader.num_targets:
            return batch
        return replace(batch, targets=torch.from_numpy(self.reader.targets_of(rows)))


def _all_broken(first: Skipped | Lost) -> DataError:
    return DataError(
        f"{_REPLACEMENTS} consecutive samples are broken, the first: {first.name}: {first.reason}."
        " Check the data and its paths."
    )


class SortedViews:
    """The views of a batch by what they are, with the masks of their pictures."""

    def __init__(self, views: Mapping[str, View], masks: Mapping[str, ViewMask]) -> None:
        self.images = {key: view for key, view in views.items() if isinstance(view, ImageView)}
        self.features = {
            key: view for key, view in views.items() if isinstance(view, FeatureView | KeyView)
        }
        self.others = {key: view for key, view in views.items() if not isinstance(view, ImageView)}
        # Towers that look at the same view of a sample see the same regions of it; other views have
        # their own.
        self.salts = [_number_of(key.partition("@")[2]) for key in self.images]
        self.masks = {name: (_number_of(name), mask) for name, mask in masks.items()}
        needs = frozenset[str]().union(*(view.needs for view in views.values()))
        self.modalities = [modality for name, modality in MODALITIES.items() if name in needs]
        self.reads_captions = TextModality.name in needs
        read: list[TextView | FeatureView | KeyView] = [
            view for view in views.values() if isinstance(view, TextView)
        ]
        read += [view for view in self.features.values() if view.table != "sample"]
        self.texts = tuple(dict.fromkeys(view.text for view in read))
        self.required = tuple(dict.fromkeys(view.text for view in read if view.required))


def _number_of(view: str) -> int:
    return 0 if view in ("", MAIN_VIEW) else zlib.crc32(view.encode())


class Filling:
    """A batch that is being filled."""

    def __init__(self, views: SortedViews, size: int) -> None:
        self.views = views
        self.skipped: list[Skipped | Lost] = []
        self.images = [view.empty(size) for view in views.images.values()]
        self.samples: list[Any] = [None] * size

    def put(self, slot: int, sample: Sample) -> None:
        """Decode a sample into its row.

        Raises:
            Broken: it cannot be read.
        """
        for modality in self.views.modalities:
            modality.require(sample, self.views.required)
        if self.images:
            views, rooms = list(self.views.images.values()), [room[slot] for room in self.images]
            render(sample, views, rooms, self.views.salts)
        self.samples[slot] = sample

    def batch(self, size: int | None = None) -> Batch:
        samples: Sequence[Sample] = self.samples[:size]
        inputs: dict[str, Tensor | TextInput] = {
            key: images[:size] for key, images in zip(self.views.images, self.images, strict=True)
        }
        hidden = {}
        if samples:
            inputs |= {key: view(samples) for key, view in self.views.others.items()}
            hidden = {
                view: torch.stack([_hidden(sample, number, mask) for sample in samples])
                for view, (number, mask) in self.views.masks.items()
            }
        return Batch(
            inputs,
            torch.tensor([sample.index for sample in samples], dtype=torch.int64),
            torch.tensor([sample.label for sample in samples], dtype=torch.int64),
            self.skipped,
            hidden,
        )


def _hidden(sample: Sample, view: int, mask: ViewMask) -> Tensor:
    """`[T]` bool, or `[V, T]` where the view has several pictures."""
    each = [
        mask.mask(random.Random(seed_of(sample.seed, view, picture, purpose=1)))
        for picture in range(mask.pictures)
    ]
    return each[0] if mask.pictures == 1 else torch.stack(each)
