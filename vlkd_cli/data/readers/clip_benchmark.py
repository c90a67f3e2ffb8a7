"""Data sets in the layout of CLIP_benchmark's webdataset copies."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.shard_samples import ShardSamples
from vlkd_cli.data.files.tar_members import Parts
from vlkd_cli.data.files.texts import decode_text, entries_of, read_entries
from vlkd_cli.data.images.files import SUFFIXES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import DataError

_CLASSES, _TEMPLATES, _KIND = (
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
)


class ClipBenchmark(Reader):
    """A folder with `train/` and `test/`, each with shards `0.tar`, `1.tar`, ...; class names and
    templates next to them.

    Samples have an image and a class number (`.cls`), a row of zeros and ones for several classes
    (`.npy`), or captions, one per line (`.txt`); `dataset_type.txt` holds `multilabel` or
    `retrieval` where it is not the first.

    Args:
        path: the data set's folder.
        split: train or test; `val` is read where there is such a folder.

    Source: LAION-AI/CLIP_benchmark @48de38c, the folders that clip_benchmark_export_wds writes
        (format only).
    """

    offers: ClassVar[frozenset[str]] = frozenset({"image", "text", "label"})

    def __init__(self, *, path: str, split: Literal["train", "val", "test"] = "test") -> None:
        folder = Path(os.path.expanduser(path))
        part = folder / split
        if not part.is_dir():
            there = (
                ", ".join(sorted(each.name for each in folder.glob("*") if each.is_dir())) or "none"
            )
            raise DataError(
                f"data.path {path} has no folder '{split}' for data.split. Folders there: {there}."
            )
        self.split = split
        self.shards = _shards(part)
        self.kind = _lines(folder / _KIND)[0] if (folder / _KIND).is_file() else "classification"
        if self.kind not in ("classification", "multilabel", "retrieval"):
            raise DataError(
                f"{folder / _KIND}: '{self.kind}' is not a kind of data set. Expected"
                " classification, multilabel or retrieval."
            )
        self.multi_label = self.kind == "multilabel"
        if self.kind != "retrieval":
            self.classes = _lines(folder / _CLASSES)
        templates = folder / _TEMPLATES
        self.templates = (
            [line.replace("{c}", "{}") for line in _lines(templates)]
            if templates.is_file()
            else None
        )
        self._text = {"classification": (), "multilabel": ("npy",), "retrieval": ("txt",)}[
            self.kind
        ]
        self._samples = ShardSamples(self.shards, Parts(SUFFIXES, self._text))
        self.lost = self._samples.lost
        self._captions: list[list[str]] = (
            [self._caption_lines(index) for index in range(len(self))]
            if self.kind == "retrieval"
            else []
        )
        self._labels: list[tuple[int, ...]] = (
            [self._ones(index) for index in range(len(self))] if self.kind == "multilabel" else []
        )
        counts = [len(own) for own in self._captions] or [len(self.templates or ())] * len(self)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if self.kind == "classification":
            self._check_labels()

    def __len__(self) -> int:
        return len(self._samples)

    def image(self, index: int) -> bytes:
        return self._read(index, "image", "an image")

    def captions(self, index: int) -> Sequence[str]:
        if self._captions:
            return self._captions[index]
        assert self.classes is not None
        label = self.label(index)
        name = self.classes[label] if label >= 0 else "thing"
        return [template.replace("{}", name) for template in self.templates or ()]

    def label(self, index: int) -> int:
        if self._labels:
            return self._labels[index][0] if self._labels[index] else -1
        return int(self.labels_of(np.asarray(index)))

    def labels_of(self, indices: np.ndarray) -> np.ndarray:
        if self._labels:
            return super().labels_of(indices)
        labels, ids = self._samples.labels(indices), self._samples.label_ids()
        return labels if ids is None else np.where(labels < 0, -1, np.take(ids, labels))

    def labels(self, index: int) -> Sequence[int]:
        return self._labels[index] if self._labels else super().labels(index)

    def name(self, index: int) -> str:
        return self._samples.name(index)

    def fingerprint(self) -> str:
        return digest_of(
            "clip_benchmark",
            self._samples.digest(),
            list(self.classes or ()),
            list(self.templates or ()),
        )

    def caption_start(self, index: int) -> int:
        return int(self._starts[index])

    def _check_labels(self) -> None:
        assert self.classes is not None
        labels = self.labels_of(np.arange(len(self)))
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            first = int(wrong[0])
            raise DataError(
                f"{self.name(first)}: class {int(labels[first])} is not one of the"
                f" {len(self.classes)} names in {_CLASSES}."
            )

    def _caption_lines(self, index: int) -> list[str]:
        content = self._needed(index, "captions")
        try:
            return entries_of(decode_text(content))
        except ValueError as error:
            raise DataError(
                f"{self.name(index)}.txt cannot be read: {error}. Write it as UTF-8."
            ) from None

    def _ones(self, index: int) -> tuple[int, ...]:
        assert self.classes is not None
        content = self._needed(index, "labels")
        try:
            shape, row = _row_of(content, len(self.classes))
        except Exception as error:  # numpy's reader raises whatever it stumbles over
            raise DataError(
                f"{self.name(index)}.npy cannot be read ({str(error) or type(error).__name__})."
                " Write the data set again."
            ) from None
        if row is None:
            raise DataError(
                f"{self.name(index)}.npy has shape {shape}; {len(self.classes)} classes are"
                f" named in {_CLASSES}."
            )
        return tuple(np.flatnonzero(row).tolist())

    def _needed(self, index: int, what: str) -> bytes:
        try:
            return self._read(index, self._text[0], what)
        except Broken as broken:
            raise DataError(f"{self.name(index)}: {broken}.") from None

    def _read(self, index: int, member: str, what: str) -> bytes:
        content = self._samples.read(index, member)
        if content is None:
            raise Broken(f"no member holds {what}")
        return content


def _shards(part: Path) -> list[str]:
    """The shards of a split in their order: as many as in `nshards.txt`, if it exists."""
    found = sorted(part.glob("*.tar"), key=lambda path: (len(path.stem), path.stem))
    if not found:
        raise DataError(f"{part}: no shard (0.tar, 1.tar, ...).")
    counted = part / "nshards.txt"
    if counted.is_file():
        wanted = _lines(counted)[0]
        if wanted != str(len(found)):
            raise DataError(
                f"{part}: {len(found)} shards, and nshards.txt lists {wanted}. Fetch the missing"
                " ones."
            )
    return [str(path) for path in found]


def _row_of(content: bytes, length: int) -> tuple[tuple[int, ...], np.ndarray | None]:
    """The shape of an array in `.npy` form, and the array where it is a row of that length: one of
    another shape is not allocated."""
    file = io.BytesIO(content)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(file)]
    shape, _, kind = read_header(file)
    if kind.kind not in "biuf":
        raise ValueError(f"it holds {kind}, not numbers")
    if shape != (length,):
        return shape, None
    return shape, np.load(io.BytesIO(content), allow_pickle=False)


def _lines(path: Path) -> list[str]:
    lines = read_entries(path)
    if not lines:
        raise DataError(f"{path}: is empty.")
    return lines
