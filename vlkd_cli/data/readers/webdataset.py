"""Tar shards in webdataset's layout: members of one sample share their stem and differ in their
suffix."""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.remote import is_url
from vlkd_cli.data.files.tar_index import Parts, captions_in, index_shards
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import PositiveInt

_OPEN_SHARDS = 64


class WebDataset(Reader):
    """Samples in tar shards.

    Local shards are indexed once (the headers only) and then read by position: the shuffle is
    exact, a stopped epoch goes on where it was, and features can be kept. Remote shards, and shards
    drawn with replacement, are read as streams.

    Args:
        path: a shard or several: a list, braces (`train-{000..127}.tar`), `*`; local, a URL, or
            `pipe:command`. `{split}` in it is replaced by `split`.
        image: suffixes of the image, the first that a sample has is taken.
        caption: suffix of the caption: a text, or a json with `caption_key`.
        caption_key: key of the caption (or of a list of them) in the json.
        label: suffix of the class number.
        stream: read in order even where the shards are local; by default only where they are not.
        resampled: draw shards with replacement (a stream).
        samples_per_epoch: of a stream, whose length nobody knows beforehand.
        shuffle_buffer: samples of a stream that are shuffled among each other, over all of a
            process's workers.
        split: which split, where `path` has a place for it.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        image: Sequence[str] = ("jpg", "jpeg", "png", "webp"),
        caption: str = "txt",
        caption_key: str | None = None,
        label: str = "cls",
        stream: bool | None = None,
        resampled: bool = False,
        samples_per_epoch: PositiveInt | None = None,
        shuffle_buffer: PositiveInt = 4000,
        split: str | None = None,
    ) -> None:
        self.split, self.shuffle_buffer, self.resampled, self.samples_per_epoch = (
            split,
            shuffle_buffer,
            resampled,
            samples_per_epoch,
        )
        self.shards = _shards([path] if isinstance(path, str) else path, split)
        if caption == "json" and caption_key is None:
            raise DataError(
                "data.caption is json; set data.caption_key to the key of the caption in it."
            )
        self.parts = Parts(tuple(image), caption, caption_key, label)
        remote = [shard for shard in self.shards if not _is_local(shard)]
        self.is_stream = bool(remote) or resampled if stream is None else stream or resampled
        if remote and not self.is_stream:
            raise DataError(
                f"shard {remote[0]} is not a local file, so it can only be read as a stream. Leave"
                " data.stream out."
            )
        self._handles: OrderedDict[int, int] = OrderedDict()
        if self.is_stream:
            if samples_per_epoch is None:
                raise DataError(
                    "shards that are read as a stream do not tell how many samples they hold. Set"
                    " data.samples_per_epoch."
                )
            return
        self._index = index_shards(self.shards, self.parts)
        if not len(self):
            raise DataError(f"the shards of data.path hold no sample, e.g. {self.shards[0]}.")
        for what, column, suffixes in (
            ("image", "image", self.parts.images),
            ("caption", "caption", (caption,)),
        ):
            if (self._index[column] < 0).all():
                others = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
                raise DataError(
                    f"no sample in {self.shards[0]}{others} has a member for the {what}:"
                    f" .{', .'.join(suffixes)}."
                )

    def opened(self) -> Reader | StreamReader:
        if not self.is_stream:
            return self
        from vlkd_cli.data.readers.shard_stream import ShardStream

        assert self.samples_per_epoch is not None
        return ShardStream(
            self.shards,
            self.parts,
            samples_per_epoch=self.samples_per_epoch,
            resampled=self.resampled,
            shuffle_buffer=self.shuffle_buffer,
        )

    def __len__(self) -> int:
        return len(self._index["shard"])

    def image(self, index: int) -> bytes:
        return self._part(index, "image")

    def captions(self, index: int) -> Sequence[str]:
        try:
            return captions_in(self._part(index, "caption"), self.parts)
        except ValueError as error:
            raise Broken(f"its caption cannot be read ({error})") from None

    def label(self, index: int) -> int:
        return int(self._index["label"][index])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._index["label"][indices]

    def name(self, index: int) -> str:
        start, size = int(self._index["name"][index]), int(self._index["name_bytes"][index])
        stem = (
            self._index["names"][start : start + size].tobytes().decode("utf-8", "surrogateescape")
        )
        return f"{self.shards[int(self._index['shard'][index])]}:{stem}"

    def fingerprint(self) -> str:
        return digest_of("webdataset", bytes(self._index["digest"]))

    def caption_start(self, index: int) -> int:
        return int(self._index["captions_before"][index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        return self._index["captions_before"][indices]

    def _part(self, index: int, part: str) -> bytes:
        start, size = int(self._index[part][index]), int(self._index[f"{part}_bytes"][index])
        if start < 0:
            raise Broken(f"it has no member for the {part}")
        try:
            content = os.pread(self._handle(int(self._index["shard"][index])), size, start)
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None
        if len(content) < size:
            raise Broken("the shard ends before the member does")
        return content

    def _handle(self, shard: int) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if len(self._handles) >= _OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])
        self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def _is_local(shard: str) -> bool:
    return not shard.startswith("pipe:") and not is_url(shard)


def _shards(paths: Sequence[str], split: str | None) -> list[str]:
    """Every shard by name, in the order given."""
    if split is not None and not any("{split}" in path for path in paths):
        raise DataError(
            f"data.split is '{split}', but data.path ({paths[0]}) has no '{{split}}' to put it in."
        )
    from braceexpand import braceexpand

    shards: list[str] = []
    for path in paths:
        path = path.replace("{split}", split or "train")
        try:
            expanded = (
                [path] if path.startswith("pipe:") and "{" not in path else list(braceexpand(path))
            )
        except ValueError:
            raise DataError(f"data.path {path}: a brace is not closed.") from None
        for shard in expanded:
            if _is_local(shard) and any(mark in shard for mark in "*?["):
                found = sorted(glob.glob(shard))
                if not found:
                    raise DataError(f"data.path {shard}: no file matches.")
                shards += found
            else:
                shards.append(shard)
    if not shards:
        raise DataError("data.path names no shard.")
    return shards
