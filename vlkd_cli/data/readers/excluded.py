"""A data set without the samples that a list names, such as those that an earlier run could not
read."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from vlkd_cli.data.files.fingerprints import digest_of
from vlkd_cli.data.files.texts import read_text, split_lines
from vlkd_cli.data.loading.order import Blocks
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.data.readers.subset import Others, Subset
from vlkd_cli.errors import DataError


def excluded_names(path: str) -> list[str]:
    """The samples that `data.exclude` names: the `skipped.csv` of a run, or those of all its
    processes where its folder is named, or a text file with one name per line.

    Raises:
        DataError: there is no such file.
    """
    source = Path(path).expanduser()
    files = sorted(source.glob("skipped*.csv")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"data.exclude {path}: the folder has no skipped.csv.")
    names: dict[str, None] = {}
    for file in files:
        if not file.is_file():
            raise DataError(f"data.exclude {path}: no such file.")
        lines = split_lines(read_text(file))
        is_table = bool(lines) and lines[0] == "sample,reason"
        rows = csv.reader(lines[1:]) if is_table else ([line] for line in lines)
        names |= dict.fromkeys(row[0] for row in rows if row and row[0].strip())
    return list(names)


def excluding(reader: Reader | StreamReader, names: Collection[str]) -> Reader:
    """The reader without the samples of these names.

    Raises:
        DataError: it has none of them, or no others; or it is a stream, whose samples are not known
            beforehand.
    """
    if isinstance(reader, StreamReader):
        raise DataError(
            "data.exclude has no effect: the data is a stream, which replaces broken samples as"
            " they come. Leave it out."
        )
    rows = reader.rows_named(set(names))
    if not len(rows):
        raise DataError(
            f"data.exclude names {len(names):,} samples, and the data has none of them. Is it the"
            " list of other data, or are the paths written in another way?"
        )
    if len(rows) == len(reader):
        raise DataError("data.exclude names every sample of the data.")
    return Excluded(reader, rows)


class Excluded(Subset):
    """Another reader without some of its samples, in its order; takes memory for those left out
    only.

    Args:
        reader: the whole.
        left_out: positions in it, ascending.
    """

    def __init__(self, reader: Reader, left_out: np.ndarray) -> None:
        self.left_out = left_out
        super().__init__(reader, Others(left_out, len(reader)))

    def column(self, name: str) -> Sequence[str]:
        rows = set(self.left_out.tolist())
        return [cell for row, cell in enumerate(self.reader.column(name)) if row not in rows]

    def fingerprint(self) -> str:
        return digest_of("excluded", self.reader.fingerprint(), self.left_out.tobytes())

    def caption_start(self, index: int) -> int:
        return int(self.caption_starts(np.asarray([index]))[0])

    def caption_starts(self, indices: np.ndarray) -> np.ndarray:
        gone = np.searchsorted(self.rows.shifted, indices, side="right")
        whole = self.reader.caption_starts(np.asarray(indices) + gone)
        starts: np.ndarray = whole - self._captions_gone[gone]
        return starts

    def _find_starts(self) -> None:
        own = self.left_out
        counts = self.reader.caption_starts(own + 1) - self.reader.caption_starts(own)
        self._captions_gone = np.concatenate([[0], np.cumsum(counts)])

    def _blocks(self, blocks: Blocks) -> Blocks:
        starts = blocks.starts - np.searchsorted(self.left_out, blocks.starts)
        return Blocks(np.unique(starts), blocks.at_once)
