"""Tar shards in webdataset's layout: members of one sample share their stem and differ in their
suffix."""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.class_numbers import dense_numbers
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.named_texts import MAIN, checked_texts, span_of
from vlkd_cli.data.files.remote import expanded, is_url
from vlkd_cli.data.files.tar_index import index_shards
from vlkd_cli.data.files.tar_members import JSON, Parts, suffix_of_key
from vlkd_cli.data.files.texts import read_at
from vlkd_cli.data.images.files import SUFFIXES
from vlkd_cli.data.readers.reader import Reader, StreamReader, with_split
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import PositiveInt

_OPEN_SHARDS = 64
_SHUFFLE_BUFFER = 4000


class WebDataset(Reader):
    """Samples in tar shards.

    Local shards are indexed once (the headers only) and then read by position: the shuffle is
    exact, a stopped epoch resumes where it was, and features can be cached. Remote shards, and
    shards sampled with replacement, are read as streams.

    Args:
        path: a shard or several: a list, braces (`train-{000..127}.tar`), `*`; local, a URL, or
            `pipe:command`. `{split}` in it is replaced by `split`. A path that exists is that
            file, whatever characters it has.
        image: suffixes of the image, the first that a sample has is taken; by default those of all
            formats that are read. Upper and lower case are the same.
        caption: suffix of the caption: a text, or a json with `caption_key`; null: images without
            captions.
        caption_key: key of the caption (or of a list of them) in the json.
        texts: further texts of a sample by name, each a key of its json member, or several keys
            with wordings of the same text; `tower@NAME` reads them.
        label: suffix of the class number.
        stream: read in order even where the shards are local; by default only where they are not.
        resampled: sample shards with replacement (a stream).
        samples_per_epoch: of a stream, whose length nobody knows beforehand.
        shuffle_buffer: samples of a stream that are shuffled among each other, over all of a
            process's workers; by default 4,000.
        split: which split, where `path` has a place for it.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    offers_by_key: ClassVar[Mapping[str, str]] = {"caption": "text", "texts": "text"}
    streams_by_key: ClassVar[frozenset[str]] = frozenset({"stream", "resampled"})

    def __init__(
        self,
        *,
        path: str | list[str],
        image: str | list[str] | None = None,
        caption: str | None = "txt",
        caption_key: str | None = None,
        texts: dict[str, str | list[str]] | None = None,
        label: str = "cls",
        stream: bool | None = None,
        resampled: bool = False,
        samples_per_epoch: PositiveInt | None = None,
        shuffle_buffer: PositiveInt | None = None,
        split: str | None = None,
    ) -> None:
        self.split, self.shuffle_buffer, self.resampled, self.samples_per_epoch = (
            split,
            shuffle_buffer,
            resampled,
            samples_per_epoch,
        )
        self.shards = _shards([path] if isinstance(path, str) else path, split)
        self.parts = _parts(image, caption, caption_key, label, checked_texts(texts))
        self.text_names = tuple(name for name, _ in self.parts.texts)
        self.has_captions = caption is not None or bool(self.text_names)
        remote = [shard for shard in self.shards if not _is_local(shard)]
        self.is_stream = bool(remote) or resampled if stream is None else stream or resampled
        if remote and not self.is_stream:
            raise DataError(
                f"shard {remote[0]} is not a local file, so it can only be streamed. Leave"
                " data.stream out."
            )
        self._handles: OrderedDict[int, int] = OrderedDict()
        if self.is_stream:
            if samples_per_epoch is None:
                raise DataError(
                    "the number of samples in shards that are read as a stream is not known. Set"
                    " data.samples_per_epoch."
                )
            return
        for key in ("samples_per_epoch", "shuffle_buffer"):
            if getattr(self, key) is not None:
                raise DataError(
                    f"data.{key} has no effect: local shards are read with random access. Leave it"
                    " out, or set data.stream: true."
                )
        self._index = index_shards(self.shards, self.parts)
        if not len(self):
            raise DataError(f"the shards of data.path hold no sample, e.g. {self.shards[0]}.")
        self._check_members()
        self._labels, self.classes = dense_numbers(self._index["label"])

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
            shuffle_buffer=self.shuffle_buffer or _SHUFFLE_BUFFER,
        )

    def __len__(self) -> int:
        return len(self._index["shard"])

    def image(self, index: int) -> bytes:
        return self._part(index, "image")

    def captions(self, index: int) -> Sequence[str]:
        return [text for texts in self._texts(index).values() for text in texts]

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        return span_of({key: len(own) for key, own in self._texts(index).items()}, name)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._labels.take(indices)

    def name(self, index: int) -> str:
        start, size = int(self._index["name"][index]), int(self._index["name_bytes"][index])
        stem = self._index["names"][start : start + size].tobytes().decode("utf-8", "surrogatepass")
        return f"{self.shards[int(self._index['shard'][index])]}:{stem}"

    def fingerprint(self) -> str:
        return digest_of("webdataset", bytes(self._index["digest"]))

    def caption_start(self, index: int) -> int:
        return int(self._index["captions_before"][index])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        return self._index["captions_before"].take(indices)

    def _texts(self, index: int) -> dict[str, list[str]]:
        """All texts of a sample by name."""
        wanted = {self.parts.caption: "caption"} if self.parts.caption is not None else {}
        wanted |= {JSON: "json"} if self.parts.texts else {}
        members = {
            suffix: self._part(index, part)
            for suffix, part in wanted.items()
            if self._index[part][index] >= 0
        }
        if wanted and not members:
            raise Broken("it has no member for the caption")
        try:
            return self.parts.texts_in(members)
        except ValueError as error:
            raise Broken(f"its caption cannot be read: {error}") from None

    def _part(self, index: int, part: str) -> bytes:
        start, size = int(self._index[part][index]), int(self._index[f"{part}_bytes"][index])
        if start < 0:
            raise Broken(f"it has no member for the {part}")
        try:
            return read_at(self._handle(int(self._index["shard"][index])), start, size)
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None
        except ValueError:
            raise Broken("the shard ends before the member does") from None

    def _handle(self, shard: int) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if len(self._handles) >= _OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])
        self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._handles[shard]

    def _check_members(self) -> None:
        """Wrong suffixes and keys show in all samples."""
        others = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        where = f"no sample in {self.shards[0]}{others}"
        wanted = [("image", "image", self.parts.images)]
        if self.parts.caption is not None:
            wanted.append(("caption", "caption", (self.parts.caption,)))
        if self.parts.texts:
            wanted.append(("texts", "json", (JSON,)))
        for what, column, suffixes in wanted:
            if (self._index[column] < 0).all():
                raise DataError(f"{where} has a member for the {what}: .{', .'.join(suffixes)}.")
        if self.has_captions and self.num_captions == 0:
            try:
                self._texts(0)
                reason = "the key is null or an empty list"
            except Broken as broken:
                reason = str(broken)
            raise DataError(
                f"{where} has a string under data.caption_key or data.texts; {self.name(0)}:"
                f" {reason}."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def _parts(
    image: str | Sequence[str] | None,
    caption: str | None,
    caption_key: str | None,
    label: str,
    texts: Mapping[str, Sequence[str]],
) -> Parts:
    images = SUFFIXES if image is None else [image] if isinstance(image, str) else image
    parts = Parts(
        tuple(suffix_of_key(suffix) for suffix in images),
        None if caption is None else suffix_of_key(caption),
        caption_key,
        suffix_of_key(label),
        tuple((name, tuple(keys)) for name, keys in texts.items()),
    )
    for key, suffixes in (("image", parts.images), ("caption", (parts.caption,))):
        if not suffixes or "" in suffixes:
            raise DataError(
                f"data.{key} is empty; it must be a suffix such as jpg, without the dot."
            )
    if parts.caption == JSON and caption_key is None:
        raise DataError(
            "data.caption is json; set data.caption_key to the key of the caption in it."
        )
    if caption is None and caption_key is not None:
        raise DataError(
            f"data.caption_key '{caption_key}' has no effect: data.caption is null. Set"
            " data.caption: json, or leave caption_key out."
        )
    return parts


def _is_local(shard: str) -> bool:
    return not shard.startswith("pipe:") and not is_url(shard)


def _shards(paths: Sequence[str], split: str | None) -> list[str]:
    """Every shard by name, in the order given."""
    if split is not None and not any("{split}" in path for path in paths):
        with_split(paths[0] if paths else "", split)
    shards: list[str] = []
    for path in paths:
        path = path.replace("{split}", split or "train")
        if path.startswith("pipe:") and "{" not in path:
            shards.append(path)
        else:
            shards += _expanded(expanded(path) if _is_local(path) else path)
    if not shards:
        raise DataError("data.path names no shard.")
    return shards


def _expanded(path: str) -> list[str]:
    """The shards that a path with braces and wildcards names. A path that exists is that file, and
    so is a folder with brackets in its name."""
    from braceexpand import braceexpand

    if _is_local(path) and os.path.exists(path):
        return [path]
    try:
        names = list(braceexpand(path))
    except ValueError:
        raise DataError(f"data.path {path}: a brace is not closed.") from None
    shards: list[str] = []
    for name in names:
        if not _is_local(name) or os.path.exists(name) or not any(mark in name for mark in "*?["):
            shards.append(name)
            continue
        found = sorted(glob.glob(name)) or sorted(glob.glob(name.replace("[", "[[]")))
        if not found:
            raise DataError(f"data.path {name}: no file matches.")
        shards += found
    return shards
