"""Tar shards read in order, through the webdataset library: remote ones, pipes, or shards sampled
with replacement."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vlkd_cli.data.batch import Sample
from vlkd_cli.data.caption_choice import Sources
from vlkd_cli.data.files.named_texts import spans_of
from vlkd_cli.data.files.remote import is_url
from vlkd_cli.data.files.tar_members import Parts, split_member
from vlkd_cli.data.files.tar_walk import BLOCK, LONGEST_END, NO_END, NO_HEADER
from vlkd_cli.data.loading.shuffling import hashed
from vlkd_cli.data.loading.streams import STREAM_SHARES
from vlkd_cli.data.readers.reader import StreamReader


class ShardStream(StreamReader):
    """Samples of tar shards, each share reading shards of its own; where there are fewer shards
    than shares, some read every n-th sample.

    A shard that is missing, or damaged from some point on, is one broken sample with the number of
    samples that are lost, estimated from the other shards of the share. One that only lacks a
    regular end is such a sample if it has less than these.

    Args:
        shards: files, URLs or `pipe:` commands.
        parts: which members of a sample are what.
        caption_weights: of the sources of captions; empty: all captions are equally likely.
        samples_per_epoch: over all shares.
        resampled: shards are sampled with replacement, endlessly, instead of each once per epoch.
        shuffle_buffer: samples shuffled among each other, over the shards of one process.
    """

    def __init__(
        self,
        shards: Sequence[str],
        parts: Parts,
        caption_weights: Sequence[float] = (),
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
        self.caption_weights = tuple(caption_weights)
        self.text_names = tuple(name for name, _ in parts.texts)
        self.num_targets = len(parts.targets)
        self.buffer = max(1, shuffle_buffer // STREAM_SHARES)

    def stream(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        samples = self._in_order(epoch, seed, shard, num_shards)
        draw = random.Random(int(hashed(seed, epoch, shard, 5)[0]))
        buffer: list[Sample] = []
        for sample in samples:
            if len(buffer) < self.buffer:
                buffer.append(sample)
                continue
            position = draw.randrange(self.buffer)
            buffer[position], sample = sample, buffer[position]
            yield sample
        draw.shuffle(buffer)
        yield from buffer

    def _in_order(self, epoch: int, seed: int, shard: int, num_shards: int) -> Iterator[Sample]:
        num_read = num_whole = 0
        ended: dict[int, tuple[int, _Ended]] = {}
        for number, (first, step) in self._own(epoch, seed, shard, num_shards):
            count = 0
            for count, found in enumerate(self._members(self.shards[number]), start=1):
                if isinstance(found, _Ended):
                    ended[number] = count - 1, found
                elif (count - 1) % step == first:
                    yield self._sample(f"{self.shards[number]}:{found[0]}", found[1])
            if number not in ended:
                num_read, num_whole = num_read + count, num_whole + 1
            mean = self.samples_per_epoch / len(self.shards)
            mean = num_read / num_whole if num_whole else mean
            for other, (held, end) in tuple(ended.items()):
                if not (end.is_certain or num_whole):
                    continue  # the next shards will show how many samples one has
                del ended[other]
                if first == 0 and (end.is_certain or held < round(mean)):
                    lost = max(1, round(mean) - held)
                    name = self.shards[other]
                    yield Sample(-1, name=name, problem=end.reason, num_samples=lost)

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

    def _members(self, shard: str) -> Iterator[tuple[str, dict[str, bytes]] | _Ended]:
        """Stem of each sample and the content of its members by suffix; `_Ended` last where the
        shard cannot be read, or not to its end. A sample that is cut off there does not count."""
        stem, members = "", dict[str, bytes]()
        end: _Ended | None = None
        try:
            for path, content in _files(shard):
                found = split_member(path)
                if found is None:
                    continue
                if found[0] != stem:
                    if members:
                        yield stem, members
                    stem, members = found[0], {}
                members[found[1]] = content
        except _NoEnd as error:
            is_cut_off = not error.is_marked and bool(members) and not self._is_whole(members)
            end = _Ended(str(error), is_certain=is_cut_off)
        # Every protocol and every compression has exceptions of its own.
        except Exception as error:
            end = _Ended(f"the shard cannot be read ({type(error).__name__}: {error})")
        if members and (end is None or not end.is_certain or self._is_whole(members)):
            yield stem, members
        if end is not None:
            yield end

    def _is_whole(self, members: dict[str, bytes]) -> bool:
        wanted = set(self.parts.members[1:])
        return self.parts.of_image(members) is not None and wanted <= set(members)

    def _sample(self, name: str, members: dict[str, bytes]) -> Sample:
        texts: dict[str, list[str]] = {}
        sources, problem = None, ""
        try:
            texts = self.parts.texts_in(members)
            if self.caption_weights:
                captions = self.parts.captions_in(members)
                sources = Sources([source for source, _ in captions], self.caption_weights)
        except ValueError as error:
            problem = f"its caption cannot be read: {error}"
        return Sample(
            -1,
            self.parts.of_image(members),
            [text for own in texts.values() for text in own],
            spans_of({key: len(own) for key, own in texts.items()}),
            label=self.parts.label_in(members),
            targets=self.parts.targets_in(members),
            name=name,
            sources=sources,
            problem=problem,
        )


class _Ended(NamedTuple):
    """Where the samples of a shard end before the shard does, or it lacks its end.

    Args:
        is_certain: samples are lost; otherwise only where other shards have more.
    """

    reason: str
    is_certain: bool = True


class _NoEnd(Exception):
    """Nothing is damaged, but the archive does not end as programs write it; `is_marked`: zeros
    mark an end, more of them than are written."""

    def __init__(self, reason: str, *, is_marked: bool) -> None:
        super().__init__(reason)
        self.is_marked = is_marked


class _Tar(tarfile.TarFile):
    """A tar file read in order as `tar_walk` reads one by position: a damaged header, one of zeros
    too, is an error and not the end, and archives that were appended are read. `zeros`: blocks of
    them since the last member; None: what follows is not ours."""

    zeros: int | None = 0


class _Header(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        place = tar.fileobj.tell()
        try:
            found = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.zeros += 1
            raise
        except _DAMAGED_HEADERS as error:
            if tar.zeros < 2:
                reason = NO_HEADER.format(place - tar.zeros * BLOCK)
                raise tarfile.ReadError(f"{reason}: {error}") from None
            tar.zeros = None
            return None  # this ends the archive
        if tar.zeros == 1:
            raise tarfile.ReadError(NO_HEADER.format(place - BLOCK))
        tar.zeros = 0
        return found


_DAMAGED_HEADERS = (
    tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
    tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
)


def _files(shard: str) -> Iterator[tuple[str, bytes]]:
    """Path and content of every regular file, in order.

    Raises:
        _NoEnd: after the last one, see there.
    """
    with (
        _opened(shard) as file,
        _Tar.open(fileobj=file, mode="r|*", tarinfo=_Header, ignore_zeros=True) as tar,
    ):
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # or it stores all that it has passed
            if member.isfile() and (content := tar.extractfile(member)) is not None:
                yield member.name, content.read()
        # A command that is still writing would end with an error.
        while file.read(1 << 16):
            pass
        zeros = tar.zeros
        if zeros is not None and not 0 < zeros * BLOCK <= LONGEST_END:
            end = NO_END.format(tar.offset - zeros * BLOCK)
            raise _NoEnd(end, is_marked=zeros > 0)


def _opened(shard: str) -> Any:
    """A shard opened by webdataset, or by fsspec where webdataset does not know the protocol."""
    import fsspec
    import webdataset
    from webdataset.gopen import gopen_schemes

    known = not is_url(shard) or shard.partition("://")[0] in {*gopen_schemes, "file"}
    return webdataset.gopen(shard) if known else fsspec.open(shard, "rb").open()
