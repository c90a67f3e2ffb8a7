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

    Args:
        batch_size: rows of this rank.
        parts: into which the stream and each batch of all ranks are divided; by default one for
            each rank. A run that resumes on another number of ranks has as many as it began with:
            each rank reads the parts that its rows belong to, and the batches stay the same.
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
        parts: int | None = None,
    ) -> None:
        self.reader, self.views, self.batch_size, self.seed = (
            reader,
            SortedViews(views, masks or {}),
            batch_size,
            seed,
        )
        self.num_shares = min(STREAM_SHARES, 1 << (batches_per_epoch.bit_length() - 1))
        self.rank, self.parts = rank, parts or world_size
        self.part_size = batch_size * world_size // self.parts
        self._open: dict[tuple[int, int], tuple[Request, Iterator[Sample]]] = {}

    def __getitem__(self, request: Request) -> Batch:
        filling = Filling(self.views, self.batch_size)
        start, stop = self.rank * self.batch_size, (self.rank + 1) * self.batch_size
        for part in range(start // self.part_size, -(-stop // self.part_size)):
            first = part * self.part_size
            own = range(max(start - first, 0), min(stop - first, self.part_size))
            self._fill(filling, request, part, own, first - start)
        return filling.batch()

    def _fill(self, filling: Filling, request: Request, part: int, own: range, offset: int) -> None:
        """Fill in these samples of a part; the first one of the part has row `offset`."""
        samples = self._continued(request, part)
        several = [next(samples) for _ in range(self.part_size)]
        broken: list[int] = []
        for slot, sample in enumerate(several):
            sample.seed = int(
                hashed(self.seed, request.epoch, part, request.number, slot, 1)[0] >> np.uint64(1)
            )
            sample.choice = sample.seed
            if slot not in own:
                continue
            try:
                filling.put(offset + slot, sample)
            except Broken as reason:
                lost = Lost(sample.name, str(reason), sample.num_samples)
                filling.skipped.append(Skipped(*lost[:2]) if lost.num_samples == 1 else lost)
                broken.append(slot)
        if not broken:
            return
        good = [
            sample
            for slot, sample in enumerate(several)
            if slot not in broken and (slot in own or self._is_readable(sample))
        ]
        if not good:
            skipped = filling.skipped[-len(broken)]
            raise DataError(
                f"{self.part_size} consecutive samples are broken, the first: {skipped.name}:"
                f" {skipped.reason}. Check the shards."
            )
        # A broken sample is replaced by another of its part, so that every batch takes the same
        # number of samples from the stream and a resumed epoch finds its position without decoding
        # earlier samples.
        for slot in broken:
            filling.put(offset + slot, good[slot % len(good)])

    def _is_readable(self, sample: Sample) -> bool:
        try:
            Filling(self.views, 1).put(0, sample)
        except Broken:
            return False
        return True

    def _continued(self, request: Request, part: int) -> Iterator[Sample]:
        """The samples of one share in a part where the last batch of this iteration left them."""
        share = request.number % self.num_shares
        last, samples = self._open.get((part, share), (None, None))
        expected = last._replace(number=last.number + self.num_shares) if last is not None else None
        if samples is None or request != expected:
            samples = self._opened(request.epoch, part, share)
            for _ in range(request.number // self.num_shares * self.part_size):
                next(samples)
        self._open[part, share] = request, samples
        return samples

    def _opened(self, epoch: int, part: int, share: int) -> Iterator[Sample]:
        number, total = part * self.num_shares + share, self.parts * self.num_shares
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
