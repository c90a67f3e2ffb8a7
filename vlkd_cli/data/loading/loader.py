"""Batches for training and evaluation, a function of (seed, epoch, position) alone.

`Loader.batches(epoch, start)` yields the same batches whatever the number of workers and whatever
was loaded before, so that resuming needs two numbers only. A broken sample is replaced by one that
its position determines, and named in `batch.skipped`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from vlkd_cli.data.batch import NO_TARGET, Batch, Lost, Skipped, View
from vlkd_cli.data.keys import CAPTION, caption_keys, column_keys
from vlkd_cli.data.loading.assembler import Assembler
from vlkd_cli.data.loading.broken import BrokenCount
from vlkd_cli.data.loading.choices import ColumnKeys, EpochCaptions
from vlkd_cli.data.loading.class_order import ClassOrder
from vlkd_cli.data.loading.distinct import DistinctOrder, KeysOf
from vlkd_cli.data.loading.draws import Draws
from vlkd_cli.data.loading.duplicates import fraction_of_duplicates
from vlkd_cli.data.loading.order import BlockOrder, EpochOrder, Order
from vlkd_cli.data.loading.streams import StreamAssembler
from vlkd_cli.data.loading.workers import Request, WorkerPool
from vlkd_cli.data.masks import ViewMask
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.distributed import runtime
from vlkd_cli.errors import DataError

_FEW_BATCHES = 8


class Loader:
    """Shuffled batches of this rank.

    The epoch's order is the same for every number of ranks; a step takes the next `world_size *
    batch_size` rows of it, and rank r the
    r-th part of them. One iterator at a time: starting another ends the former.

    Args:
        reader: the data.
        views: what each tower sees, by "tower" or "tower@input". Image views of the same name after
            the "@" share their random regions.
        masks: of views, by their name.
        batch_size: rows of this rank in a batch.
        seed: of order, texts, augmentation and masks.
        workers: processes that prepare batches; 0: this process does. Streams use 1, 2, 4 or 8 of
            them.
        prefetch: batches that each worker prepares ahead.
        shuffle: False: rows in the reader's order.
        drop_last: leave out the rows that do not fill a step of all ranks; False: a last, smaller
            batch, equal on all ranks, filled up from the epoch's beginning.
        episode_samples: samples per epoch over all ranks; None: one pass over the data.
        per_class: samples of each class in a step of all ranks; None: whatever comes.
        distinct: "caption", or a column: no two samples of a step of all ranks have the same; None:
            whatever comes.
        columns: of the data, by name, one entry for each row; batches get their rows' entries.
        max_broken_share: the largest fraction of different broken samples among those seen.
        rank: of this process; by default that of the process group.
        world_size: likewise.
        pin_memory: deliver page-locked memory, for copies to a GPU that do not block.
        broken: rows that are known to be unreadable (their stored features are missing); replaced
            and reported like those found broken.
        draws: the augmentations of views with stored augmentations.
        stream_parts: into which streams are divided; by default one for each rank.

    Raises:
        DataError: there is less data than one step of all ranks needs; while iterating: too much of
            it is broken.
    """

    def __init__(
        self,
        reader: Reader | StreamReader,
        views: Mapping[str, View],
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        prefetch: int = 2,
        shuffle: bool = True,
        drop_last: bool = True,
        episode_samples: int | None = None,
        per_class: int | None = None,
        distinct: str | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
        max_broken_share: float = 0.01,
        rank: int | None = None,
        world_size: int | None = None,
        pin_memory: bool = False,
        broken: Mapping[int, Skipped] | None = None,
        masks: Mapping[str, ViewMask] | None = None,
        draws: Draws | None = None,
        stream_parts: int | None = None,
    ) -> None:
        rank = runtime.rank() if rank is None else rank
        world_size = runtime.world_size() if world_size is None else world_size
        self.reader, self.batch_size, self.world_size = reader, batch_size, world_size
        step_rows = batch_size * world_size
        num_samples = len(reader) if isinstance(reader, Reader) else reader.samples_per_epoch
        positions = episode_samples or num_samples
        if isinstance(reader, Reader):
            order = _order(reader, seed, shuffle, episode_samples, per_class, distinct, step_rows)
            positions = len(order)
        else:
            _refuse_for_streams(per_class=per_class, distinct=distinct, columns=columns)
        self.batches_per_epoch = positions // step_rows if drop_last else -(-positions // step_rows)
        if self.batches_per_epoch == 0:
            raise _too_few(positions, batch_size, world_size)
        self.seed, self.order = seed, order if isinstance(reader, Reader) else None
        self._broken = BrokenCount(
            max_broken_share, num_samples, is_stream=isinstance(reader, StreamReader)
        )
        self._assembler: Assembler | StreamAssembler
        if isinstance(reader, StreamReader):
            streams = StreamAssembler(
                reader,
                views,
                batch_size=batch_size,
                seed=seed,
                batches_per_epoch=self.batches_per_epoch,
                masks=masks,
                rank=rank,
                world_size=world_size,
                parts=stream_parts,
            )
            # A worker reads whole shares, so their number is a multiple of the workers'.
            workers = max(
                count for count in (0, 1, 2, 4, 8) if count <= min(workers, streams.num_shares)
            )
            self._assembler = streams
        else:
            self._assembler = Assembler(
                reader,
                views,
                order,
                batch_size=batch_size,
                seed=seed,
                masks=masks,
                rank=rank,
                world_size=world_size,
                broken={**without_targets(reader), **(broken or {})},
                columns=columns,
                draws=draws,
            )
            # Gathering stored rows takes less time than sending them between processes.
            workers = workers if self._assembler.reads_samples else 0
        self._workers, self._prefetch = workers, prefetch
        self._pool = WorkerPool(
            self._assembler, workers=workers, prefetch=prefetch, pin_memory=pin_memory
        )

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches `[start, batches_per_epoch)` of an epoch.

        Raises:
            DataError: more than the allowed fraction of the samples is broken; the message names
                the first.
        """
        for batch in self._pool.run(
            [Request(epoch, number) for number in range(start, self.batches_per_epoch)]
        ):
            self._broken.take(batch)
            yield batch

    def fraction_of_duplicates(self) -> float | None:
        """The fraction of the rows of a step whose caption is another row's of that step; None
        where the data is a stream or has no captions."""
        reader, step_rows = self.reader, self.batch_size * self.world_size
        if self.order is None or not isinstance(reader, Reader) or not reader.has_captions:
            return None
        return fraction_of_duplicates(reader, self.order, seed=self.seed, step_rows=step_rows)

    @property
    def lost(self) -> Sequence[Lost]:
        """Shards and parts of shards that are not among the samples."""
        return self.reader.lost if isinstance(self.reader, Reader) else ()

    @property
    def rows(self) -> Assembler:
        """Access to the data by rows.

        Raises:
            TypeError: the data is a stream.
        """
        if not isinstance(self._assembler, Assembler):
            raise TypeError("a stream has no rows")
        return self._assembler

    def images_of(self, rows: np.ndarray, draws: np.ndarray) -> Iterator[Batch]:
        """Batches of the images that stored towers read of these rows under these augmentations;
        what cannot be read is left out."""
        count = -(-len(rows) // self.batch_size)
        # Starting processes takes longer than decoding a few batches.
        workers = self._workers if count > _FEW_BATCHES else 0
        images = _ImagesOf(self.rows, rows, draws, self.batch_size)
        pool = WorkerPool(images, workers=workers, prefetch=self._prefetch, pin_memory=False)
        try:
            yield from pool.run([Request(0, number) for number in range(count)])
        finally:
            pool.close()

    @property
    def broken(self) -> Mapping[str, Skipped | Lost]:
        """The broken samples that this rank has met, by name."""
        return self._broken.broken

    def close(self) -> None:
        """Let the workers go; they come back when batches are asked for again."""
        self._pool.close()


def _too_few(positions: int, batch_size: int, world_size: int) -> DataError:
    return DataError(
        f"an epoch has {positions} samples, fewer than the {batch_size * world_size} of one step"
        f" ({world_size} x batch size {batch_size}). Lower train.batch_size or the number of"
        " processes, or raise data.episode_samples."
    )


class _ImagesOf:
    """Makes batches of images of given rows under given augmentations."""

    def __init__(
        self, assembler: Assembler, rows: np.ndarray, draws: np.ndarray, batch_size: int
    ) -> None:
        self.assembler, self.of, self.draws, self.size = assembler, rows, draws, batch_size

    def __getitem__(self, request: Request) -> Batch:
        own = slice(request.number * self.size, (request.number + 1) * self.size)
        return self.assembler.images_of(self.of[own], self.draws[own])


def without_targets(reader: Reader) -> dict[int, Skipped]:
    """Rows with a target that is not a finite number."""
    if not reader.num_targets:
        return {}
    finite = np.isfinite(reader.targets_of(np.arange(len(reader)))).all(axis=1)
    return {row: Skipped(reader.name(row), NO_TARGET) for row in np.flatnonzero(~finite).tolist()}


def _order(
    reader: Reader,
    seed: int,
    shuffle: bool,
    episode_samples: int | None,
    per_class: int | None,
    distinct: str | None,
    step_rows: int,
) -> Order:
    if per_class is not None:
        return ClassOrder(
            reader.labels_of(np.arange(len(reader))),
            per_class=per_class,
            step_rows=step_rows,
            seed=seed,
            episode_samples=episode_samples,
        )
    order: Order = EpochOrder(
        len(reader), seed=seed, shuffle=shuffle, episode_samples=episode_samples
    )
    if shuffle and reader.blocks is not None:
        order = BlockOrder(reader.blocks, seed=seed, episode_samples=episode_samples)
    if distinct is None:
        return order
    if distinct == CAPTION:
        keys_of: KeysOf = EpochCaptions(reader, caption_keys(reader), seed)
    else:
        keys_of = ColumnKeys(column_keys(reader, distinct))
    what = "caption" if distinct == CAPTION else f"entry of column '{distinct}'"
    return DistinctOrder(order, keys_of, step_rows=step_rows, what=what)


def _refuse_for_streams(**keys: object) -> None:
    for key, value in keys.items():
        if value:
            raise DataError(f"data.{key} needs random access to samples, but the data is a stream.")


def in_order(
    reader: Reader,
    views: Mapping[str, View],
    indices: Sequence[int],
    *,
    batch_size: int,
    workers: int = 0,
    skip: bool = False,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Every given position once, in order; the last batch may be short. For evaluation.

    Args:
        skip: leave broken samples out and name them in `batch.skipped`, instead of raising.

    Raises:
        DataError: a sample is broken; the message names it.
    """
    assembler = _InOrder(
        reader, views, torch.as_tensor(indices, dtype=torch.int64).numpy(), batch_size, skip
    )
    num_batches = -(-len(indices) // batch_size)
    pool = WorkerPool(
        assembler,
        workers=min(workers, num_batches) if assembler.reads_samples else 0,
        prefetch=2,
        pin_memory=pin_memory,
    )
    try:
        yield from pool.run([Request(0, number) for number in range(num_batches)])
    finally:
        pool.close()


class _InOrder(Assembler):
    def __init__(
        self,
        reader: Reader,
        views: Mapping[str, View],
        indices: np.ndarray,
        batch_size: int,
        skip: bool,
    ) -> None:
        super().__init__(
            reader,
            views,
            EpochOrder(max(len(reader), 1), seed=0, shuffle=False),
            batch_size=batch_size,
            seed=0,
        )
        self.indices, self.skip = indices, skip

    def __getitem__(self, request: Request) -> Batch:
        rows = self.indices[
            request.number * self.batch_size : (request.number + 1) * self.batch_size
        ]
        return self.exactly(rows, skip=self.skip)
