"""Features of a frozen tower under K augmentations of each image: a table for each view and
augmentation, filled while training meets the rows.

A table is keyed by what determines its rows: weights, view, data, precision, and the seed and
number of the augmentation, so K can grow and runs share tables. Values are written before their
checks: what interrupts a run leaves rows undone, never wrong.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.data.batch import Skipped
from vlkd_cli.data.loading.assembler import number_of
from vlkd_cli.data.loading.draws import Draws
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import ImageView
from vlkd_cli.distributed import runtime
from vlkd_cli.errors import DataError
from vlkd_cli.features.about import About, remember
from vlkd_cli.features.broken_rows import note_broken, noted_broken
from vlkd_cli.features.forward import insist_on_numbers
from vlkd_cli.features.store import CHECKS, FEATURES, FeatureStore, is_broken, is_done
from vlkd_cli.numerics.bfloat16 import as_float32
from vlkd_cli.numerics.npy import load_npy
from vlkd_cli.recipe.types import Precision, TableType
from vlkd_cli.towers.outputs import BACKBONE
from vlkd_cli.towers.tower import Tower


class DrawTables:
    """The tables of one tower, open for writing on every rank; ranks write disjoint rows.

    Args:
        tower: frozen.
        reader: the data; a row is picture p of sample i: i * pictures + p.
        folder: the cache folder.
        views: what the tower reads, by the name of the view.
        draws: the augmentations.
        precision: of the tower's forward pass.
        outputs: what is stored of each picture, joined to one row.
        dtype: of the tables.

    Raises:
        DataError: the disk has no room for the tables, or the folder cannot be written.
    """

    def __init__(
        self,
        tower: Tower,
        reader: Reader,
        folder: Path,
        views: Mapping[str, ImageView],
        draws: Draws,
        *,
        precision: Precision,
        outputs: Sequence[str] = (BACKBONE,),
        dtype: TableType = "float32",
    ) -> None:
        self.tower, self.dtype = tower, dtype
        self.width = sum(map(tower.width_of, outputs))
        self.first = {name: number * draws.total for number, name in enumerate(views)}
        digest, data = tower.digest(), reader.fingerprint()
        self._abouts = [
            About(tower.name, digest, "+".join(outputs), name, data, draw, draws.seed)
            for name in views
            for draw in range(draws.total)
        ]
        folders = [
            folder / "train_features" / _key(about, views[about.view], precision, dtype)
            for about in self._abouts
        ]
        rows = [len(reader) * views[about.view].pictures for about in self._abouts]
        self._refuse_full_disk(folder, folders, rows)
        self.stores = self._opened(folders, rows)

    def store(self, tables: Tensor, rows: Tensor, features: Tensor) -> None:
        """Write features that the tower computed.

        Args:
            tables, rows: `[N]`, where each belongs.
            features: `[N, D]`, of all outputs that are stored.

        Raises:
            DataError: they hold NaN or infinity, or the disk is full.
        """
        insist_on_numbers(self.tower, features)
        numbers, positions, values = (part.cpu().numpy() for part in (tables, rows, features))
        for number in np.unique(numbers).tolist():
            # A row appears twice if it replaced a broken one.
            own, first = np.unique(positions[numbers == number], return_index=True)
            self.stores[number].write(own, values[numbers == number][first])

    def worker_tables(self, view: str) -> list[WorkerTable]:
        """The tables of a view as loader workers read them, by the number of the augmentation."""
        first = self.first[view]
        count = len(self.stores) // len(self.first)
        return [WorkerTable(store, self.dtype) for store in self.stores[first : first + count]]

    def fraction_stored(self) -> float:
        """Finished rows among all rows, when the tables were opened."""
        return float(np.mean([store.done.mean() for store in self.stores]))

    def _opened(self, folders: list[Path], rows: list[int]) -> list[FeatureStore]:
        stores: list[FeatureStore] = []
        # The first process of each machine makes and verifies the tables before the others look.
        if runtime.local_rank() == 0:
            for path, count, about in zip(folders, rows, self._abouts, strict=True):
                store = FeatureStore(path, count, self.width, dtype=self.dtype)
                assert store.folder is not None
                remember(store.folder, about)
                stores.append(store)
        runtime.barrier()
        return stores or [
            FeatureStore(path, count, self.width, dtype=self.dtype, verify=False)
            for path, count in zip(folders, rows, strict=True)
        ]

    def _refuse_full_disk(self, folder: Path, folders: list[Path], rows: list[int]) -> None:
        value_bytes = 2 if self.dtype == "bfloat16" else 4
        needed = sum(
            count * (self.width * value_bytes + 8)
            for path, count in zip(folders, rows, strict=True)
            if not (path / FEATURES).is_file()
        )
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise DataError(
                f"towers.{self.tower.name}.cache: {len(folders)} tables of features need"
                f" {needed / 2**30:.1f} GiB, and {existing} has {free / 2**30:.1f} GiB free. Lower"
                " draws, add dtype: bfloat16, or set VLKD_CACHE or train.cache_dir to a larger"
                " disk."
            )


class WorkerTable:
    """A table as a loader worker reads it, which another process fills meanwhile."""

    def __init__(self, store: FeatureStore, dtype: TableType = "float32") -> None:
        assert store.folder is not None
        self.dtype = dtype
        self.folder, self.rows, self.width = store.folder, store.rows, store.width
        self._maps: dict[str, np.ndarray] = {}
        self._noted: dict[int, Skipped] | None = None

    def stored(self, rows: np.ndarray) -> np.ndarray:
        return is_done(self._mapped(CHECKS)[rows])

    def reason(self, row: int) -> str | None:
        if not is_broken(self._mapped(CHECKS)[row : row + 1])[0]:
            return None
        if self._noted is None:
            self._noted = noted_broken(self.folder)
        return self._noted[row].reason if row in self._noted else "could not be read"

    def note(self, rows: np.ndarray, name: str, reason: str) -> None:
        if self.stored(rows).all():
            return
        note_broken(self.folder, {int(rows[0]): Skipped(name, reason)})
        zeros = np.zeros((len(rows), self.width), dtype=np.float32)
        store = FeatureStore(self.folder, self.rows, self.width, dtype=self.dtype, verify=False)
        store.write(rows, zeros, np.ones(len(rows), dtype=np.bool_))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return as_float32(self._mapped(FEATURES)[rows])

    def _mapped(self, name: str) -> np.ndarray:
        if name not in self._maps:
            # The plain array over the map: numpy.memmap's own indexing costs more.
            self._maps[name] = np.asarray(load_npy(self.folder / name, mmap_mode="r"))
        return self._maps[name]

    def __getstate__(self) -> dict[str, object]:
        # A mapped array would be pickled with its content.
        return {**self.__dict__, "_maps": {}}


def _key(about: About, view: ImageView, precision: Precision, dtype: TableType) -> str:
    parts = (
        about.digest,
        about.output,
        _described(about.view, view),
        precision,
        about.data,
        str(about.seed),
        str(about.draw),
        *([] if dtype == "float32" else [dtype]),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _described(name: str, view: ImageView) -> str:
    """What determines the pictures of a view, for given seeds."""
    augment = view.augment
    changes = "" if augment is None else repr(sorted(vars(augment).items()))
    kind = type(augment).__name__
    # A view's name goes into the seeds of its random choices.
    return f"{number_of(name)} {view.expected!r} {kind} {changes} {view.copies} {view.pictures}"


def say_what_is_stored(tables: Mapping[str, DrawTables], draws: Draws) -> None:
    """Print once what stored towers will cost, and what machines without a common folder do."""
    for name, own in tables.items():
        console.say(
            f"Tower '{name}': features of {draws.total} augmentation"
            f"{'s' if draws.total > 1 else ''} of each image are stored;"
            f" {own.fraction_stored():.0%} are there."
        )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if runtime.is_distributed() else 1
    if tables and runtime.world_size() > local:
        console.say(
            "Each machine stores the features that it computes. Unless the cache folder is common"
            " to all (VLKD_CACHE), rows of other machines are computed when they are met."
        )
