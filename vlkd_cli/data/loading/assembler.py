"""One batch out of a reader with random access: which rows, which captions, decoded and
tokenized."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlkd_cli.data.batch import NO_TARGET, Batch, Broken, Lost, Sample, Skipped, View
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.loading.choices import choices as caption_choices
from vlkd_cli.data.loading.choices import chosen_texts
from vlkd_cli.data.loading.draws import Draws
from vlkd_cli.data.loading.order import Order
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.workers import Request
from vlkd_cli.data.masks import ViewMask
from vlkd_cli.data.meshes.view import MeshView
from vlkd_cli.data.modality import MODALITIES, TextModality
from vlkd_cli.data.readers.mix import Mix
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.stored_view import StoredView
from vlkd_cli.data.views import FeatureView, ImageView, KeyView, TextView, render, seed_of
from vlkd_cli.errors import DataError
from vlkd_cli.preprocessing import Inputs
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
        draws: the augmentations of views with stored augmentations (`ImageView.by_draw`).
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
        draws: Draws | None = None,
    ) -> None:
        self.reader, self.order, self.columns = reader, order, dict(columns or {})
        self.draws = draws or Draws(1)
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.broken = dict(broken or {})
        self._without_text: set[int] = set()
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
        passes = self._of_mix(request.epoch, self.order.passes(request.epoch, positions))
        draws = self.draws.numbers(passes)
        readable = ~np.isin(rows, list(self._without_text))
        stored = self.views.stored(rows[readable], draws[readable])
        filling = self._filled(rows, choices, seeds, draws, stored)
        if stored and self.views.stored(filling.rows(), draws) != stored:
            # The replacement of a broken sample has no features yet.
            filling = self._filled(rows, choices, seeds, draws, frozenset())
        return self._with_targets(filling.batch())

    def _filled(
        self,
        rows: np.ndarray,
        choices: np.ndarray,
        seeds: np.ndarray,
        draws: np.ndarray,
        stored: frozenset[str],
    ) -> Filling:
        filling = Filling(self.views, len(rows), stored)
        for slot, (row, *own) in enumerate(
            zip(rows.tolist(), choices.tolist(), seeds.tolist(), draws.tolist(), strict=True)
        ):
            self._put(filling, slot, row, *own)
        return filling

    def _of_mix(self, epoch: int, passes: np.ndarray) -> np.ndarray:
        # A mixture repeats its smaller sets, so its rows do not pass over any of them once.
        return np.full_like(passes, epoch) if isinstance(self.reader, Mix) else passes

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

    def images_of(self, rows: np.ndarray, draws: np.ndarray) -> Batch:
        """The images that stored towers read of these rows under these augmentations; samples that
        cannot be read are left out and remembered as such."""
        filling = Filling(self.views.only_stored(), len(rows))
        slot = 0
        for row, draw in zip(rows.tolist(), draws.tolist(), strict=True):
            try:
                filling.put(slot, self._sample(row, 0, 0, draw))
                slot += 1
            except Broken as broken:
                self._remember(row, draw, Skipped(self.reader.name(row), str(broken)))
        return filling.batch(slot)

    def missing(self, rows: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Which of these rows lack features of a stored tower under these augmentations, bool."""
        readable = ~np.isin(rows, list(self._without_text))
        found = [
            view.missing(rows, draws) for view in self.views.stored_views.values() if view.tables
        ]
        lacking: np.ndarray = np.any([np.zeros(len(rows), dtype=np.bool_), *found], axis=0)
        found_missing: np.ndarray = readable & lacking
        return found_missing

    def left_out(self, epoch: int, batches: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of an epoch that so many batches do not reach, and their augmentations."""
        first = min(batches * self.batch_size * self.world_size, len(self.order))
        rows, passes = self.order.rest(epoch, first)
        return rows, self.draws.numbers(self._of_mix(epoch, passes))

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
        inputs: dict[str, Inputs] = {
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

    def _put(
        self, filling: Filling, slot: int, row: int, choice: int, seed: int, draw: int
    ) -> None:
        for attempt in range(_REPLACEMENTS):
            try:
                return filling.put(slot, self._sample(row, choice, seed, draw))
            except Broken as broken:
                skipped = Skipped(self.reader.name(row), str(broken))
                filling.skipped.append(skipped)
                self._remember(row, draw, skipped)
                row = self.order.replacement(row, seed, attempt)
        raise _all_broken(filling.skipped[0])

    def _remember(self, row: int, draw: int, skipped: Skipped) -> None:
        """Let a sample that cannot be read count as one whose features are stored."""
        if not self.views.stored_views:
            return
        try:
            image = self.reader.image(row)
            if image is not None:
                decode(image)
                # Not in the tables: another run may read this image without its texts.
                self._without_text.add(row)
                return
        except Broken:
            pass
        for view in self.views.stored_views.values():
            view.note(row, draw, *skipped)

    def _sample(self, row: int, choice: int, seed: int, draw: int = 0) -> Sample:
        reader, views = self.reader, self.views
        if row in self.broken:
            raise Broken(self.broken[row].reason)
        for view in views.stored_views.values():
            if (reason := view.reason(row, draw)) is not None:
                raise Broken(reason)
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
            draw=draw,
            draw_seed=int(self.draws.seeds(np.array([draw]), np.array([row]))[0])
            if views.use_draws
            else 0,
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
        self.stored_views = {
            key: view for key, view in views.items() if isinstance(view, StoredView)
        }
        self.use_draws = any(view.by_draw for view in self.images.values())
        self.features = {
            key: view for key, view in views.items() if isinstance(view, FeatureView | KeyView)
        }
        # Towers that look at the same view of a sample see the same regions of it; other views have
        # their own.
        self.salts = {key: number_of(key.partition("@")[2]) for key in self.images}
        self.masks = {name: (number_of(name), mask) for name, mask in masks.items()}
        self.others = {
            key: view.salted(number_of(key.partition("@")[2]))
            if isinstance(view, MeshView)
            else view
            for key, view in views.items()
            if not isinstance(view, ImageView)
        }
        needs = frozenset[str]().union(*(view.needs for view in views.values()))
        self.modalities = [modality for name, modality in MODALITIES.items() if name in needs]
        self.reads_captions = TextModality.name in needs
        read: list[TextView | FeatureView | KeyView] = [
            view for view in views.values() if isinstance(view, TextView)
        ]
        read += [view for view in self.features.values() if view.table != "sample"]
        self.texts = tuple(dict.fromkeys(view.text for view in read))
        self.required = tuple(dict.fromkeys(view.text for view in read if view.required))

    def only_stored(self) -> SortedViews:
        """The views of stored towers alone."""
        return SortedViews(self.stored_views, {})

    def stored(self, rows: np.ndarray, draws: np.ndarray) -> frozenset[str]:
        """Keys of the views whose features are stored for all of these rows."""
        return frozenset(key for key, view in self.stored_views.items() if view.stored(rows, draws))


def number_of(view: str) -> int:
    """The number that separates the random choices of a view from those of others."""
    return 0 if view in ("", MAIN_VIEW) else zlib.crc32(view.encode())


class Filling:
    """A batch that is being filled.

    Args:
        stored: keys of the views of which features are read and no image is decoded.
    """

    def __init__(self, views: SortedViews, size: int, stored: frozenset[str] = frozenset()) -> None:
        self.views, self.stored = views, stored
        self.skipped: list[Skipped | Lost] = []
        self.images = {
            key: view.empty(size) for key, view in views.images.items() if key not in stored
        }
        self.samples: list[Any] = [None] * size

    def rows(self) -> np.ndarray:
        """The rows that it holds."""
        return np.array([sample.index for sample in self.samples], dtype=np.int64)

    def put(self, slot: int, sample: Sample) -> None:
        """Decode a sample into its row.

        Raises:
            Broken: it cannot be read.
        """
        for modality in self.views.modalities:
            modality.require(sample, self.views.required)
        if not all(map(math.isfinite, sample.targets)):
            raise Broken(NO_TARGET)
        if self.images:
            render(
                sample,
                [self.views.images[key] for key in self.images],
                [room[slot] for room in self.images.values()],
                [self.views.salts[key] for key in self.images],
            )
        self.samples[slot] = sample

    def batch(self, size: int | None = None) -> Batch:
        samples: Sequence[Sample] = self.samples[:size]
        targets = [sample.targets for sample in samples]
        inputs: dict[str, Inputs] = {
            key: self.views.stored_views[key].images(samples, images[:size])
            if key in self.views.stored_views
            else images[:size]
            for key, images in self.images.items()
        }
        hidden = {}
        if samples:
            inputs |= {key: self.views.stored_views[key].features(samples) for key in self.stored}
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
            torch.tensor(targets, dtype=torch.float32) if any(map(len, targets)) else None,
        )


def _hidden(sample: Sample, view: int, mask: ViewMask) -> Tensor:
    """`[T]` bool, or `[V, T]` where the view has several pictures."""
    each = [
        mask.mask(random.Random(seed_of(sample.seed, view, picture, purpose=1)))
        for picture in range(mask.pictures)
    ]
    return each[0] if mask.pictures == 1 else torch.stack(each)
