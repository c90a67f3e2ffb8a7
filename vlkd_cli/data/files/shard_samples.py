"""Samples of local tar shards, read from the disk by position."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Sequence

import numpy as np

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.shard_index import MISSING, index_shards
from vlkd_cli.data.files.tar_members import Parts, split_member
from vlkd_cli.data.files.tar_walk import BLOCK, path_before
from vlkd_cli.data.files.texts import read_at

_OPEN_SHARDS = 64


class ShardSamples:
    """What the samples of shards hold, as bytes.

    Args:
        shards: local tar files, uncompressed.
        parts: which members are read.

    Raises:
        DataError: see `index_shards`.
    """

    def __init__(self, shards: Sequence[str], parts: Parts) -> None:
        self.shards, self.parts = list(shards), parts
        self.arrays, self.lost = index_shards(shards, parts)
        self._handles: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self.arrays["members"])

    def has(self, member: str) -> bool:
        """Whether any sample has this member, one of `Parts.members`."""
        column = 2 * self.parts.members.index(member) + 1
        return bool((self.arrays["members"][:, column] != MISSING).any())

    def read(self, index: int, member: str) -> bytes | None:
        """The content of a member, one of `Parts.members`; None where the sample lacks it.

        Raises:
            Broken: it cannot be read.
        """
        column = 2 * self.parts.members.index(member)
        block, size = self.arrays["members"][index, column : column + 2].tolist()
        if size == MISSING:
            return None
        try:
            return read_at(self._handle(self._shard(index)), block * BLOCK, size)
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None
        except ValueError:
            raise Broken("the shard ends before the member does") from None

    def texts(self, index: int) -> dict[str, bytes]:
        """The content of the members with texts that a sample has, by suffix.

        Raises:
            Broken: one cannot be read.
        """
        found = {suffix: self.read(index, suffix) for suffix in self.parts.text_members}
        return {suffix: content for suffix, content in found.items() if content is not None}

    def name(self, index: int) -> str:
        """Shard and stem of a sample, from the header of its first member."""
        shard = self._shard(index)
        block = int(self.arrays["members"][index, 0])
        try:
            named = split_member(path_before(self._handle(shard), block))
        except (OSError, ValueError):
            named = None  # the file has changed since it was indexed
        return f"{self.shards[shard]}:{named[0] if named else block * BLOCK}"

    def rows_named(self, names: Collection[str]) -> np.ndarray:
        """Positions of the samples of these names; only the shards in them are looked into."""
        shards = {name.rpartition(":")[0] for name in names}
        starts = self.arrays["starts"].tolist()
        rows = [
            row
            for number, shard in enumerate(self.shards)
            if shard in shards
            for row in range(starts[number], starts[number + 1])
            if self.name(row) in names
        ]
        return np.array(rows, dtype=np.int64)

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """Class numbers, int64; -1 where there is none."""
        if "labels" not in self.arrays:
            return np.full(np.shape(indices), -1, dtype=np.int64)
        return self.arrays["labels"].take(indices).astype(np.int64)

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Numbers, `[N, T]` float32; NaN where a sample lacks one."""
        found: np.ndarray = self.arrays["targets"][indices]
        return found

    def label_ids(self) -> list[int] | None:
        """The class ids behind class numbers."""
        return self.arrays["label_ids"].tolist() if "label_ids" in self.arrays else None

    def captions_before(self, indices: np.ndarray) -> np.ndarray:
        """Number of texts before each position, int64."""
        if "captions_before" not in self.arrays:
            return np.asarray(indices, dtype=np.int64)
        return self.arrays["captions_before"].take(indices).astype(np.int64)

    def digest(self) -> str:
        """Changes whenever the content of the shards does."""
        return bytes(self.arrays["digest"]).decode()

    def _shard(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return int(np.searchsorted(self.arrays["starts"], index, side="right")) - 1

    def _handle(self, shard: int) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        if len(self._handles) >= _OPEN_SHARDS:
            os.close(self._handles.popitem(last=False)[1])
        self._handles[shard] = os.open(self.shards[shard], os.O_RDONLY)
        return self._handles[shard]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handles": OrderedDict()}

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)
