"""Tar shards read in order, through the webdataset library: remote ones, pipes, or shards sampled
with replacement."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.files.named_texts import spans_of
from vlkd_cli.data.files.tar_members import Parts, split_member
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.streams import STREAM_SHARES
from vlkd_cli.data.readers.reader import StreamReader
from vlkd_cli.errors import DataError


class ShardStream(StreamReader):
    """Samples of tar shards, each share reading shards of its own; where there are fewer shards
    than shares, some read every n-th sample.

    Args:
        shards: files, URLs or `pipe:` commands.
        parts: which members of a sample are what.
        samples_per_epoch: over all shares.
        resampled: shards are sampled with replacement, endlessly, instead of each once per epoch.
        shuffle_buffer: samples shuffled among each other, over the shards of one process.
    """

    def __init__(
        self,
        shards: Sequence[str],
        parts: Parts,
        *,
        samples_per_epoch: int,
        resampled: bool = False,
        shuffle_buffer: int = 4000,
    ) -> None:
        self.shards, self.parts, self.samples_per_epoch, self.resampled = (
            list(shards),
            parts,
            samples_per_epoch,
            resampled,
        )
        self.buffer = max(1, shuffle_buffer // STREAM_SHARES)

    def stream(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        samples = self._in_order(epoch, seed, shard, num_shards)
        draw = random.Random(int(hashed(seed, epoch, shard, 5)[0]))
        buffer: list[Sample] = []
        for sample in samples:
            if len(buffer) < self.buffer:
                buffer.append(sample)
                continue
            place = draw.randrange(self.buffer)
            buffer[place], sample = sample, buffer[place]
            yield sample
        draw.shuffle(buffer)
        yield from buffer

    def _in_order(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        for number, (first, step) in self._own(epoch, seed, shard, num_shards):
            for place, members in enumerate(self._members(self.shards[number])):
                if place % step == first:
                    yield self._sample(self.shards[number], members)

    def _own(
        self, epoch: int, seed: int, shard: int, num_shards: int
    ) -> Iterator[tuple[int, tuple[int, int]]]:
        """Numbers of the shards that a share reads, with the first sample and the step that it
        takes in each."""
        if self.resampled:
            draw = random.Random(int(hashed(seed, epoch, shard, 6)[0]))
            while True:
                yield draw.randrange(len(self.shards)), (0, 1)
        order = list(range(len(self.shards)))
        random.Random(int(hashed(seed, epoch, 7)[0])).shuffle(order)
        if len(order) >= num_shards:
            for number in order[shard::num_shards]:
                yield number, (0, 1)
        else:
            sharing = len(range(shard % len(order), num_shards, len(order)))
            yield order[shard % len(order)], (shard // len(order), sharing)

    def _members(self, shard: str) -> Iterator[dict[str, object]]:
        import webdataset

        def give_up(error: Exception) -> bool:
            raise DataError(
                f"shard {shard} cannot be read ({type(error).__name__}: {error}). Check data.path"
                " and the connection."
            )

        yield from webdataset.DataPipeline(
            webdataset.SimpleShardList([shard]),
            webdataset.tarfile_to_samples(
                handler=give_up,
                select_files=lambda path: split_member(path) is not None,
                rename_files=lambda path: path.removeprefix("./"),
            ),
        )

    def _sample(self, shard: str, members: dict[str, Any]) -> Sample:
        name = f"{shard}:{members['__key__']}"
        texts: dict[str, list[str]] = {}
        problem = ""
        try:
            texts = self.parts.texts_in(members)
        except ValueError as error:
            problem = f"its caption cannot be read: {error}"
        captions = [text for own in texts.values() for text in own]
        return Sample(
            -1,
            self.parts.of_image(members),
            captions,
            spans_of({key: len(own) for key, own in texts.items()}),
            label=self.parts.label_in(members),
            name=name,
            problem=problem,
        )
