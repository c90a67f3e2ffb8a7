"""The folder that a synthesis fills piece by piece, so that an interrupted one continues."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlkd_cli.data.files.relations import FILE, HEADER, PAGE, Relation, write_whole
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.numerics.npy import load_npy
from vlkd_cli.whole_file import whole_file

PARTS = "parts"
_STATE = "state.json"


class Parts:
    """The pieces of a synthesis below OUT/parts: lists of mined passages and blocks of relations.

    Args:
        output: OUT.
        digest: of settings, models and data; pieces of another one are not used.
    """

    def __init__(self, output: Path, digest: str) -> None:
        self.output, self.digest = output, digest
        self.folder = output / PARTS

    def start(self) -> bool:
        """Make the folder; false where the synthesis is complete already. On one process only.

        Raises:
            UserError: it holds something else, or cannot be written.
        """
        if (found := self._digest_of(self.output / PAGE)) is not None:
            if found == self.digest and (self.output / FILE).is_file():
                shutil.rmtree(self.folder, ignore_errors=True)
                return False
            raise self._other(PAGE)
        state = self.folder / _STATE
        if state.is_file() and self._digest_of(state) != self.digest:
            raise self._other(f"{PARTS}/{_STATE}")
        try:
            others = {path.name for path in self.output.glob("*")} - {PARTS}
            if not state.is_file() and others:
                raise UserError(f"OUT {self.output}: is not empty. Name a new folder.")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(state, [json.dumps({"digest": self.digest})])
        except OSError as error:
            raise UserError(
                f"OUT {self.output} cannot be written: {error.strerror}. Name another folder."
            ) from error
        return True

    def _digest_of(self, file: Path) -> object:
        """The recorded sources of a file; None if there is no such file."""
        if not file.is_file():
            return None
        try:
            return read_json(file)["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{file} is damaged. Delete {self.output} and start again.") from None

    def _other(self, file: str) -> UserError:
        return UserError(
            f"OUT {self.output}: {file} is of other settings, models or data. Name another folder,"
            " or delete this one."
        )

    def lists(self, miner: str) -> NDArray[np.int32] | None:
        """The passages that a miner found, `[Q, depth]`, where they are stored whole."""
        try:
            return np.asarray(load_npy(self._lists(miner), mmap_mode="r"))
        except (OSError, ValueError):
            return None  # not there, or cut off: mined again

    def write_lists(self, miner: str, lists: NDArray[np.int32]) -> None:
        """Store what a miner found."""
        with whole_file(self._lists(miner)) as partial, partial.open("wb") as file:
            np.save(file, lists)

    def _lists(self, miner: str) -> Path:
        return self.folder / f"mined-{miner}.npy"

    def is_done(self, block: int) -> bool:
        """Whether the relations of a block of queries are stored."""
        return self._block(block).is_file()

    def write_block(
        self, block: int, relations: Sequence[Relation], counts: Mapping[str, int]
    ) -> None:
        """Store the relations of a block of queries, and what there is to report of them."""
        write_whole(self._block(block).with_suffix(".json"), [json.dumps(dict(counts))])
        write_whole(self._block(block), (relation.line() for relation in relations))

    def _block(self, block: int) -> Path:
        return self.folder / f"{block:06}.tsv"

    def counts(self, blocks: range) -> Counter[str]:
        """What there is to report of all blocks."""
        total: Counter[str] = Counter()
        for block in blocks:
            file = self._block(block).with_suffix(".json")
            total.update(read_json(file))
        return total

    def finish(self, blocks: range, page: Mapping[str, object]) -> None:
        """Join the blocks, write the page and remove the pieces."""

        def lines() -> Iterator[str]:
            yield HEADER
            for block in blocks:
                with self._block(block).open(encoding="utf-8", newline="") as file:
                    yield from file

        write_whole(self.output / FILE, lines())
        text = json.dumps({"digest": self.digest, **page}, indent=2, ensure_ascii=False)
        write_whole(self.output / PAGE, [f"{text}\n"])
        shutil.rmtree(self.folder, ignore_errors=True)
