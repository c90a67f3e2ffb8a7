"""Batches out of data that can only be read in its own order (remote shards)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vlkd_cli.data.batch import Batch, Broken, Lost, Sample, Skipped, View
from vlkd_cli.data.loading.assembler import Filling, SortedViews
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.workers import Request
from vlkd_cli.data.masks import ViewMask
from vlkd_cli.data.readers.reader import StreamReader
from vlkd_cli.errors import DataError

STREAM_SHARES = 8
"""Shares that each rank reads side by side. Batch k comes from share k modulo this number, so that
any number of workers that divides it gives the same batches."""


class StreamAssembler:
    """Makes the batches of one rank out of a stream; requests of a share must come in their order,
    as they do in every worker.

    A share that is exhausted before the epoch is over begins its next pass. A resumed epoch skips
    the samples that were loaded before, without decoding them.
    """

    def __init__(
        self,
        reader: StreamReader,
        views: Mapping[str, View],
        *,
        batch_size: int,
        seed: int,
        batches_per_epoch: int,
        masks: Mapping[str, ViewMask] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.reader, self.views, self.batch_size, self.seed = (
            reader,
            SortedViews(views, masks or {}),
            batch_size,
            seed,
        )
        self.num_shares = min(STREAM_SHARES, 1 << (batches_per_epoch.bit_length() - 1))
        self.rank, self.world_size = rank, world_size
        self._open: dict[int, tuple[Request, Iterator[Sample]]] = {}

    def __getitem__(self, request: Request) -> Batch:
        share = request.number % self.num_shares
        samples = self._continued(request, share)
        filling = Filling(self.views, self.batch_size)
        good: list[Sample] = []
        replaced: list[int] = []
        for slot in range(self.batch_size):
            sample = next(samples)
            sample.seed = int(
                hashed(self.seed, request.epoch, self.rank, request.number, slot, 1)[0]
                >> np.uint64(1)
            )
            sample.choice = sample.seed
            try:
                filling.put(slot, sample)
                good.append(sample)
            except Broken as broken:
                lost = Lost(sample.name, str(broken), sample.num_samples)
                filling.skipped.append(Skipped(*lost[:2]) if lost.num_samples == 1 else lost)
                replaced.append(slot)
        if not good:
            first = filling.skipped[0]
            raise DataError(
                f"{self.batch_size} consecutive samples are broken, the first: {first.name}:"
                f" {first.reason}. Check the shards."
            )
        # A broken sample is replaced by another of its batch, so that every batch takes the same
        # number of samples from the stream and a resumed epoch finds its position without decoding
        # earlier samples.
        for slot in replaced:
            filling.put(slot, good[slot % len(good)])
        return filling.batch()

    def _continued(self, request: Request, share: int) -> Iterator[Sample]:
        """The share's samples where the last batch of this iteration left them."""
        last, samples = self._open.get(share, (None, None))
        expected = last._replace(number=last.number + self.num_shares) if last is not None else None
        if samples is None or request != expected:
            samples = self._opened(request.epoch, share)
            for _ in range(request.number // self.num_shares * self.batch_size):
                next(samples)
        self._open[share] = request, samples
        return samples

    def _opened(self, epoch: int, share: int) -> Iterator[Sample]:
        number, total = self.rank * self.num_shares + share, self.world_size * self.num_shares
        repeat = 0
        while True:
            empty = True
            # A later pass of the same epoch has an order of its own.
            seed = int(hashed(self.seed, repeat)[0] >> np.uint64(1))
            for sample in self.reader.stream(epoch, seed, number, total):
                empty = False
                yield sample
            if empty:
                raise DataError(
                    f"part {number + 1} of {total} of the stream holds no sample. Use more shards"
                    " or fewer processes."
                )
            repeat += 1
