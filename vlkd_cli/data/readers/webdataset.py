"""Tar shards in webdataset's layout: members of one sample share their stem and differ in their
suffix."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.caption_choice import Sources, checked_weights
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.named_texts import MAIN, checked_texts, span_of
from vlkd_cli.data.files.remote import braced, expanded, is_url
from vlkd_cli.data.files.shard_samples import ShardSamples
from vlkd_cli.data.files.tar_members import JSON, Parts, suffix_of_key
from vlkd_cli.data.images.files import SUFFIXES
from vlkd_cli.data.readers.reader import Reader, StreamReader, with_split
from vlkd_cli.errors import DataError
from vlkd_cli.recipe.types import PositiveInt

_SHUFFLE_BUFFER = 4000


class WebDataset(Reader):
    """Samples in tar shards.

    Local shards are indexed once (the headers only) and then read by position: the shuffle is
    exact, a stopped epoch resumes where it was, and features can be cached. Remote shards, and
    shards sampled with replacement, are read as streams.

    Args:
        path: a shard or several: a list, braces (`train-{000..127}.tar`), `*`, or a folder with
            them (img2dataset's output); local, a URL, or `pipe:command`. `{split}` in it is
            replaced by `split`. A path that exists is that file, whatever characters it has.
        image: suffixes of the image, the first that a sample has is taken; by default those of all
            formats that are read. Upper and lower case are the same.
        caption: suffix of the caption: a text, or a json with `caption_key`; several suffixes of
            texts: each is a source of captions; null: images without captions.
        caption_key: key of the caption (or of a list of them) in the json; several keys: each is a
            source of captions.
        caption_weights: how often each source of captions is chosen, in any unit; a sample that
            lacks the chosen one gives the next. By default all captions of a sample are equally
            likely.
        texts: further texts of a sample by name, each a key of its json member, or several keys
            with wordings of the same text; `tower@NAME` reads them.
        target: key of a number in its json member, or several, for distillers that compare with
            `targets`.
        label: suffix of the class number.
        stream: read in order even where the shards are local; by default only where they are not.
        resampled: sample shards with replacement (a stream).
        samples_per_epoch: of a stream, whose length nobody knows beforehand.
        shuffle_buffer: samples of a stream that are shuffled among each other, over all of a
            process's workers; by default 4,000.
        split: replaces `{split}` in `path`.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    offers_by_key: ClassVar[Mapping[str, str]] = {
        "caption": "text",
        "texts": "text",
        "target": "target",
    }
    streams_by_key: ClassVar[frozenset[str]] = frozenset({"stream", "resampled"})

    def __init__(
        self,
        *,
        path: str | list[str],
        image: str | list[str] | None = None,
        caption: str | list[str] | None = "txt",
        caption_key: str | list[str] | None = None,
        caption_weights: list[float] | None = None,
        texts: dict[str, str | list[str]] | None = None,
        target: str | list[str] | None = None,
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
        self.parts = _parts(image, caption, caption_key, label, checked_texts(texts), target)
        self.text_names = tuple(name for name, _ in self.parts.texts)
        self.num_targets = len(self.parts.targets)
        self.has_captions = caption is not None or bool(self.text_names)
        self.caption_weights = _weights(caption_weights, self.parts)
        self.weighs_captions = bool(self.caption_weights)
        remote = [shard for shard in self.shards if not _is_local(shard)]
        self.is_stream = bool(remote) or resampled if stream is None else stream or resampled
        if remote and not self.is_stream:
            raise DataError(
                f"shard {remote[0]} is not a local file, so it can only be streamed. Leave"
                " data.stream out."
            )
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
        self._samples = ShardSamples(self.shards, self.parts)
        self.lost = self._samples.lost
        self._check_members()
        ids = self._samples.label_ids()
        self.classes = None if ids is None else list(map(str, ids))

    def opened(self) -> Reader | StreamReader:
        if not self.is_stream:
            return self
        from vlkd_cli.data.readers.shard_stream import ShardStream

        assert self.samples_per_epoch is not None
        return ShardStream(
            self.shards,
            self.parts,
            self.caption_weights,
            samples_per_epoch=self.samples_per_epoch,
            resampled=self.resampled,
            shuffle_buffer=self.shuffle_buffer or _SHUFFLE_BUFFER,
        )

    def __len__(self) -> int:
        return len(self._samples)

    def image(self, index: int) -> bytes:
        content = self._samples.read(index, "image")
        if content is None:
            raise Broken("it has no member for the image")
        return content

    def captions(self, index: int) -> Sequence[str]:
        return [text for texts in self._texts(index).values() for text in texts]

    def text_span(self, index: int, name: str = MAIN) -> tuple[int, int]:
        return span_of({key: len(own) for key, own in self._texts(index).items()}, name)

    def caption_sources(self, index: int) -> Sources:
        captions = self.parts.captions_in(self._samples.texts(index))
        return Sources([source for source, _ in captions], self.caption_weights)

    def label(self, index: int) -> int:
        return int(self._samples.labels(np.asarray(index)))

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        return self._samples.labels(indices)

    def targets_of(self, indices: np.ndarray) -> np.ndarray:
        found = super().targets_of(indices)
        return self._samples.targets(indices) if self.num_targets else found

    def name(self, index: int) -> str:
        return self._samples.name(index)

    def rows_named(self, names: Collection[str]) -> np.ndarray:
        return self._samples.rows_named(names)

    def fingerprint(self) -> str:
        return digest_of("webdataset", self._samples.digest())

    def caption_start(self, index: int) -> int:
        return int(self.caption_starts(np.asarray([index]))[0])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        if not self.has_captions:
            return np.zeros(len(indices), dtype=np.int64)
        return self._samples.captions_before(indices)

    def _texts(self, index: int) -> dict[str, list[str]]:
        """All texts of a sample by name."""
        members = self._samples.texts(index)
        if self.has_captions and not members:
            raise Broken("it has no member for the caption")
        try:
            return self.parts.texts_in(members)
        except ValueError as error:
            raise Broken(f"its caption cannot be read: {error}") from None

    def _check_members(self) -> None:
        """Wrong suffixes and keys show in all samples."""
        others = f" and {len(self.shards) - 1} more" if len(self.shards) > 1 else ""
        where = f"no sample in {self.shards[0]}{others}"
        wanted = [("image", "image", self.parts.images)]
        wanted += [("caption", suffix, (suffix,)) for suffix in self.parts.captions]
        for what, keys in (("texts", self.parts.texts), ("target", self.parts.targets)):
            if keys:
                wanted.append((what, JSON, (JSON,)))
        for what, member, suffixes in wanted:
            if not self._samples.has(member):
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
        numbers = self.targets_of(np.arange(len(self)))
        for key, column in zip(self.parts.targets, numbers.T, strict=True):
            if not np.isfinite(column).any():
                raise DataError(f"{where} has a finite number under data.target '{key}'.")


def _parts(
    image: str | Sequence[str] | None,
    caption: str | Sequence[str] | None,
    caption_key: str | Sequence[str] | None,
    label: str,
    texts: Mapping[str, Sequence[str]],
    target: str | Sequence[str] | None,
) -> Parts:
    parts = Parts(
        SUFFIXES if image is None else _suffixes(image, "image"),
        () if caption is None else _suffixes(caption, "caption"),
        (caption_key,) if isinstance(caption_key, str) else tuple(caption_key or ()),
        suffix_of_key(label),
        tuple((name, tuple(keys)) for name, keys in texts.items()),
        (target,) if isinstance(target, str) else tuple(target or ()),
    )
    if JSON in parts.captions and not parts.caption_keys:
        raise DataError(
            "data.caption is json; set data.caption_key to the key of the caption in it."
        )
    if parts.caption_keys and len(parts.captions) != 1:
        problem = "is null" if caption is None else "lists several members"
        raise DataError(
            f"data.caption_key '{', '.join(parts.caption_keys)}' has no effect: data.caption"
            f" {problem}. Set data.caption: json, or leave caption_key out."
        )
    return parts


def _suffixes(given: str | Sequence[str], key: str) -> tuple[str, ...]:
    suffixes = tuple(map(suffix_of_key, [given] if isinstance(given, str) else given))
    if not suffixes or "" in suffixes:
        raise DataError(f"data.{key} is empty; it must be a suffix such as jpg, without the dot.")
    return suffixes


def _weights(weights: Sequence[float] | None, parts: Parts) -> tuple[float, ...]:
    if parts.caption_keys:
        return checked_weights(weights, len(parts.caption_keys), "caption_key")
    return checked_weights(weights, len(parts.captions))


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
    if _is_local(path) and os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*.[tT][aA][rR]")))
        if not found:
            raise DataError(f"data.path {path} is a folder without shards (*.tar).")
        return found
    if _is_local(path) and os.path.exists(path):
        return [path]
    shards: list[str] = []
    for name in braced(path):
        if not _is_local(name) or os.path.exists(name) or not any(mark in name for mark in "*?["):
            shards.append(name)
            continue
        found = sorted(glob.glob(name)) or sorted(glob.glob(name.replace("[", "[[]")))
        if not found:
            raise DataError(f"data.path {name}: no file matches.")
        shards += found
    return shards
