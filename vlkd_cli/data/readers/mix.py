"""Several data sets as one, each sampled in proportion to its weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vlkd_cli.data.batch import Broken, Sample
from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.named_texts import MAIN
from vlkd_cli.data.loading.order import Blocks
from vlkd_cli.data.loading.shuffling import hashed, permuted
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.errors import DataError


def mixed(
    readers: Sequence[Reader | StreamReader], weights: Sequence[float | None]
) -> Reader | StreamReader:
    """One reader out of several.

    Args:
        readers: what is mixed; where one of them is a stream, the mixture is one.
        weights: how often each is sampled, in any unit; all None: each set as often as it
            is large.

    Raises:
        DataError: weights are missing or not positive.
    """
    if not readers:
        raise DataError("data.readers is empty; list at least one reader.")
    sizes = [
        len(reader) if isinstance(reader, Reader) else reader.samples_per_epoch
        for reader in readers
    ]
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(readers):
        raise DataError("data.readers: give every reader a 'weight', or none of them.")
    if any(weight <= 0 for weight in given):
        raise DataError("data.readers: a 'weight' must be above 0.")
    shares = (
        [weight / sum(given) for weight in given]
        if given
        else [size / sum(sizes) for size in sizes]
    )
    if all(isinstance(reader, Reader) for reader in readers):
        return Mix([reader for reader in readers if isinstance(reader, Reader)], shares)
    return MixedStream(readers, shares)


class Mix(Reader):
    """Data sets one after another, the smaller-weighted repeated: as many rows as it takes for
    every set to be there in full.

    Args:
        readers: the data sets.
        shares: of each, adding up to 1.
    """

    def __init__(self, readers: Sequence[Reader], shares: Sequence[float]) -> None:
        self.readers = list(readers)
        total = max(len(reader) / share for reader, share in zip(readers, shares, strict=True))
        self._sizes = np.array([len(reader) for reader in readers])
        counts = np.maximum(np.round(total * np.asarray(shares)).astype(np.int64), self._sizes)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        captions = [
            (count // len(reader)) * reader.num_captions
            + reader.caption_start(int(count % len(reader)))
            for reader, count in zip(self.readers, counts.tolist(), strict=True)
        ]
        self._caption_starts = np.concatenate([[0], np.cumsum(captions)])
        first = readers[0]
        if first.classes is not None and all(
            list(reader.classes or ()) == list(first.classes) for reader in readers
        ):
            self.classes, self.templates = first.classes, first.templates
        _require_alike(readers)
        self.text_names, self.num_targets = first.text_names, first.num_targets
        self.has_captions = all(reader.has_captions for reader in readers)
        self.salvages = all(reader.salvages for reader in readers)
        self.has_groups = all(reader.has_groups for reader in readers)
        self.weighs_captions = any(reader.weighs_captions for reader in readers)
        self.lost = [each for reader in readers for each in reader.lost]
        self.blocks = self._blocks()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, index: int) -> object:  # type: ignore[override]
        reader, row = self._find(index)
        return reader.image(row)

    def mesh(self, index: int) -> np.ndarray | None:
        reader, row = self._find(index)
        return reader.mesh(row)

    def captions(self, index: int) -> Sequence[str]:
        reader, row = self._find(index)
        return reader.captions(row)

    def label(self, index: int) -> int:
        # Numbers of different sets of classes mean different things.
        if self.classes is None:
            return -1
        reader, row = self._find(index)
        return reader.label(row)

    def labels(self, index: int) -> Sequence[int]:
        if self.classes is None:
            return ()
        reader, row = self._find(index)
        return reader.labels(row)

    def text_span(self, index: int, name: str = "main") -> tuple[int, int]:
        reader, row = self._find(index)
        return reader.text_span(row, name)

    def caption_sources(self, index: int) -> Sources:
        reader, row = self._find(index)
        if reader.weighs_captions:
            return reader.caption_sources(row)
        first, stop = reader.text_span(row)
        return Sources([0] * (stop - first), [1])

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        parts, _, rows = self._located(indices)
        targets = super().targets_of(indices)
        for part in np.unique(parts):
            targets[parts == part] = self.readers[part].targets_of(rows[parts == part])
        return targets

    def group(self, index: int) -> str:
        reader, row = self._find(index)
        return reader.group(row)

    def column(self, name: str) -> Sequence[str]:
        parts, _, rows = self._located(np.arange(len(self)))
        columns = [reader.column(name) for reader in self.readers]
        return [columns[part][row] for part, row in zip(parts.tolist(), rows.tolist(), strict=True)]

    def name(self, index: int) -> str:
        reader, row = self._find(index)
        return reader.name(row)

    def id(self, index: int) -> str:
        reader, row = self._find(index)
        return reader.id(row)

    def fingerprint(self) -> str:
        return digest_of(
            "mix", self._starts.tolist(), [reader.fingerprint() for reader in self.readers]
        )

    def caption_start(self, index: int) -> int:
        return int(self.caption_starts(np.asarray([index]))[0])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        parts, rounds, rows = self._located(indices)
        starts = np.empty(len(rows), dtype=np.int64)
        for part in np.unique(parts):
            own, reader = parts == part, self.readers[part]
            starts[own] = (
                self._caption_starts[part]
                + rounds[own] * reader.num_captions
                + reader.caption_starts(rows[own])
            )
        return starts

    def _blocks(self) -> Blocks | None:
        """The blocks of all sets and their repetitions; sets without any in pieces of their mean
        size."""
        given = [reader.blocks for reader in self.readers if reader.blocks is not None]
        if not given:
            return None
        mean = max(1, round(float(np.mean([np.diff(each.starts).mean() for each in given]))))
        starts = [self._starts]
        for reader, first, stop in zip(
            self.readers, self._starts.tolist(), self._starts[1:].tolist(), strict=False
        ):
            size = len(reader)
            own = np.arange(0, size, mean) if reader.blocks is None else reader.blocks.starts
            starts += [begin + own[own < stop - begin] for begin in range(first, stop, size)]
        return Blocks(np.unique(np.concatenate(starts)), max(each.at_once for each in given))

    def _located(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which reader each position is of, in which of its repetitions, and at which row."""
        indices = np.asarray(indices)
        parts = np.minimum(
            np.searchsorted(self._starts, indices, side="right") - 1, len(self.readers) - 1
        )
        return parts, *np.divmod(indices - self._starts[parts], self._sizes[parts])

    def _find(self, index: int) -> tuple[Reader, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.readers[part], int(index - self._starts[part]) % len(self.readers[part])


def _require_alike(readers: Sequence[Reader | StreamReader]) -> None:
    first = readers[0]
    for other in readers[1:]:
        if other.text_names != first.text_names or other.num_targets != first.num_targets:
            raise DataError(
                "data.readers: all of them need the same 'texts' and as many columns of"
                f" 'target'; they have {_offered(first)} and {_offered(other)}."
            )


def _offered(reader: Reader | StreamReader) -> str:
    return f"({', '.join(reader.text_names) or 'no texts'}; {reader.num_targets} targets)"


class MixedStream(StreamReader):
    """Streams (and readers, shuffled) sampled in turn at random; each begins again when it is
    exhausted.

    Args:
        readers: what is mixed.
        shares: of each, adding up to 1.
    """

    def __init__(self, readers: Sequence[Reader | StreamReader], shares: Sequence[float]) -> None:
        _require_alike(readers)
        self.readers, self.shares = list(readers), list(shares)
        self.text_names, self.num_targets = readers[0].text_names, readers[0].num_targets
        sizes = [
            len(reader) if isinstance(reader, Reader) else reader.samples_per_epoch
            for reader in readers
        ]
        self.samples_per_epoch = int(
            max(size / share for size, share in zip(sizes, shares, strict=True))
        )

    def stream(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        def endless(reader: Reader | StreamReader, part: int) -> Iterator[Sample]:
            repeat = 0
            while True:
                own = int(hashed(seed, part, repeat)[0] >> np.uint64(1))
                one_pass = (
                    reader.stream(epoch, own, shard, num_shards)
                    if isinstance(reader, StreamReader)
                    else _shuffled(reader, epoch, own, shard, num_shards)
                )
                empty = True
                for sample in one_pass:
                    empty = False
                    yield sample
                if empty:
                    raise DataError(
                        f"part {shard + 1} of {num_shards} of data.readers[{part}] holds no"
                        " sample. Use fewer processes."
                    )
                repeat += 1

        sources = [endless(reader, part) for part, reader in enumerate(self.readers)]
        edges = np.cumsum(self.shares)
        for number in range(-(-self.samples_per_epoch // num_shards)):
            point = float(hashed(seed, epoch, shard, number, 3)[0] >> np.uint64(11)) / (1 << 53)
            yield next(
                sources[min(int(np.searchsorted(edges, point, side="right")), len(sources) - 1)]
            )


def _shuffled(
    reader: Reader, epoch: int, seed: int, shard: int, num_shards: int
) -> Iterator[Sample]:
    for position in range(shard, len(reader), num_shards):
        row = int(permuted(np.asarray([position]), len(reader), hashed(seed, epoch))[0])
        image, sources, problem = None, None, ""
        captions: Sequence[str] = ()
        spans: Mapping[str, tuple[int, int]] = {}
        try:
            image = reader.image(row)
            captions = reader.captions(row)
            spans = {name: reader.text_span(row, name) for name in (MAIN, *reader.text_names)}
            sources = reader.caption_sources(row) if reader.weighs_captions else None
        except Broken as broken:
            problem = str(broken)
        yield Sample(
            row,
            image,
            captions,
            spans,
            label=reader.label(row),
            targets=reader.targets_of(np.array([row]))[0].tolist(),
            name=reader.name(row),
            salvage=reader.salvages,
            sources=sources,
            problem=problem,
        )
