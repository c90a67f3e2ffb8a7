"""Features of a frozen tower, computed once and read ever after.

Where a tower's backbone is frozen and its input never changes, its features are rows of a
memory-mapped file; training then reads the rows, and neither runs the tower nor decodes its images.
The file is keyed by what determines the features (weights, preprocessing, data, precision), so
another run with the same tower and data finds it filled, and an interrupted population resumes
where it stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.data.batch import Broken, Skipped
from vlkd_cli.data.fixed_length import FixedLength, longest_text
from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed import runtime
from vlkd_cli.features.about import About, remember
from vlkd_cli.features.broken_rows import note_broken, noted_broken
from vlkd_cli.features.forward import evaluating, insist_on_numbers
from vlkd_cli.features.store import FEATURES, FeatureStore
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.preprocessing import described_input
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import ModalityName, Precision, TableType
from vlkd_cli.towers.tower import Tower

SAMPLES_PER_WINDOW = 1024
NO_CAPTION = "has no caption"


class Stored(NamedTuple):
    """A complete table of features: its `.npy` file, and the samples that could not be read, whose
    rows hold zeros."""

    path: Path
    broken: dict[int, Skipped]


def store_features(
    tower: Tower,
    reader: Reader,
    folder: Path,
    *,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int,
    alike: bool = False,
    dtype: TableType = "float32",
) -> Stored:
    """Fill the table of a tower's features over a data set.

    Rows are the samples in the reader's order, or all captions (`Modality.rows`). The
    processes of one machine share the work; each machine fills the table of its own cache folder.

    Args:
        alike: texts are encoded in batches of one size and one length (`FixedLength`), so that a
            step which encodes them in such batches gives the same bits.
        dtype: of the table.

    Returns:
        The table `[rows, feature_width]`, complete on return, on every rank.
    """
    facts = FACTS[tower.modality]
    rows_of = partial(MODALITIES[tower.modality].rows, reader)
    rows = len(rows_of(range(len(reader))))
    key = (precision, *(["alike"] if alike else []), *([] if dtype == "float32" else [dtype]))
    open_store = partial(FeatureStore, width=tower.feature_width, rows=rows, dtype=dtype)
    store, path = _opened(tower, reader, folder, open_store, key)
    assert store.folder is not None
    missing = [
        positions
        for positions in _windows(len(reader))
        if not store.done[_slice(rows_of(positions))].all()
    ]
    if missing and runtime.is_main():
        console.say(
            f"Computing the features of tower '{tower.name}' once: {rows:,} {facts.offered}."
        )
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if runtime.is_distributed() else 1
    # Every process must have read what is missing before one of them fills it in.
    runtime.barrier()
    compute = _sample_features if facts.has_views else partial(_caption_features, Computed(store))
    if alike and missing:
        tokenize = FixedLength(tower.input, longest_text(reader, tower.input))
        compute = partial(_caption_features, Computed(store), tokenize=tokenize)
    with evaluating(tower), torch.no_grad():
        for positions in missing[runtime.local_rank() :: local_world]:
            features, broken = compute(
                tower, reader, positions, device, precision, batch_size, workers
            )
            note_broken(store.folder, broken)
            own = rows_of(positions)
            insist_on_numbers(tower, features)
            marks = np.zeros(len(own), dtype=np.bool_)
            for position in broken:
                lost = rows_of(range(position, position + 1))
                marks[lost.start - own.start : lost.stop - own.start] = True
            store.write(np.array(own), features.numpy(), marks)
    runtime.barrier()
    store = open_store(path, verify=False)
    assert store.folder is not None
    return Stored(store.folder / FEATURES, _broken_samples(store, reader, tower.modality))


def _opened(
    tower: Tower,
    reader: Reader,
    folder: Path,
    open_store: Callable[..., FeatureStore],
    key: tuple[str, ...],
) -> tuple[FeatureStore, Path]:
    """The table on every rank, and its path; the first process of each machine makes and verifies
    it before the others look."""
    parts = (
        tower.digest(),
        reader.fingerprint(),
        tower.modality,
        described_input(tower.input) or "None",
        key[0],
        str(tower.feature_width),
        *key[1:],
    )
    path = folder / "train_features" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    store = open_store(path) if runtime.local_rank() == 0 else None
    if store is not None and store.folder is not None:
        view = "main" if FACTS[tower.modality].has_views else "texts"
        about = About(tower.name, tower.digest(), "backbone", view, reader.fingerprint())
        remember(store.folder, about)
    runtime.barrier()
    return store or open_store(path, verify=False), path


class Computed:
    """Where the features of captions are that this process has computed, so that a text of many
    samples (a passage of many triplets) is encoded once.

    Args:
        store: that holds them.
        most: captions that are remembered, of about 150 bytes each.
    """

    def __init__(self, store: FeatureStore, most: int = 1_000_000) -> None:
        self._store, self._most, self._rows = store, most, dict[bytes, int]()

    def row(self, caption: str) -> int | None:
        """The row of the table with the features of this text."""
        return self._rows.get(_key(caption))

    def remember(self, caption: str, row: int) -> None:
        """The features of a text are going to be in this row."""
        if len(self._rows) < self._most:
            self._rows[_key(caption)] = row

    def features(self, rows: list[int]) -> Tensor:
        """The features in these rows."""
        return torch.from_numpy(self._store.table()[rows])


def _key(caption: str) -> bytes:
    return hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _windows(count: int) -> list[range]:
    return [
        range(start, min(start + SAMPLES_PER_WINDOW, count))
        for start in range(0, count, SAMPLES_PER_WINDOW)
    ]


def _slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def _sample_features(
    tower: Tower,
    reader: Reader,
    positions: range,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int,
) -> tuple[Tensor, dict[int, Skipped]]:
    """`[len(positions), feature_width]`, zeros where a sample cannot be read; and those samples."""
    features = torch.zeros(len(positions), tower.feature_width)
    broken: dict[int, Skipped] = {}
    for batch in in_order(
        reader,
        {tower.name: MODALITIES[tower.modality].view(tower.input, None, None)},
        positions,
        batch_size=batch_size,
        workers=workers,
        skip=True,
    ):
        rows = batch.indices - positions.start
        if len(rows):
            with autocast(precision, device):
                features[rows] = tower.features(batch.to(device).inputs[tower.name]).float().cpu()
        if batch.skipped:
            named = {name: Skipped(name, reason) for name, reason, *_ in batch.skipped}
            broken |= {row: named[name] for row in positions if (name := reader.name(row)) in named}
    return features, broken


def _caption_features(
    computed: Computed,
    tower: Tower,
    reader: Reader,
    positions: range,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int,
    *,
    tokenize: FixedLength | None = None,
) -> tuple[Tensor, dict[int, Skipped]]:
    """Features of all captions of the samples, zeros where a sample has none that can be read; and
    those samples.

    Args:
        tokenize: pads to one length; batches are then filled up to one size too.
    """
    first = reader.caption_start(positions.start)
    captions: dict[int, str] = {}
    broken: dict[int, Skipped] = {}
    for position in positions:
        reason = NO_CAPTION
        try:
            own = reader.captions(position)
        except Broken as error:
            own, reason = (), str(error)
        if any(caption.strip() for caption in own):
            captions |= dict(enumerate(own, reader.caption_start(position) - first))
        else:
            broken[position] = Skipped(reader.name(position), reason)
    features = torch.zeros(reader.caption_start(positions.stop) - first, tower.feature_width)
    known = {row: at for row, text in captions.items() if (at := computed.row(text)) is not None}
    features[list(known)] = computed.features(list(known.values()))
    firsts: dict[str, int] = {}
    same = {row: firsts.setdefault(captions[row], row) for row in captions if row not in known}
    # Captions of similar length share a batch, so that little of it is padding.
    order = sorted(firsts.values(), key=lambda row: len(captions[row]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        texts = [captions[row] for row in chosen]
        if tokenize is not None:
            texts += texts[-1:] * (batch_size - len(texts))
        tokens = {
            name: tensor.to(device) for name, tensor in (tokenize or tower.input)(texts).items()
        }
        with autocast(precision, device):
            features[chosen] = tower.features(tokens).float().cpu()[: len(chosen)]
    features[list(same)] = features[list(same.values())]
    for text, row in firsts.items():
        computed.remember(text, first + row)
    return features, broken


def _broken_samples(
    store: FeatureStore, reader: Reader, modality: ModalityName
) -> dict[int, Skipped]:
    """The samples that cannot be read, from the marks of their rows; why, where it was noted."""
    assert store.folder is not None
    rows = np.flatnonzero(store.broken)
    by_sample = FACTS[modality].has_views
    if not by_sample:
        starts = np.append(reader.caption_starts(np.arange(len(reader))), reader.num_captions)
        # A sample without captions has no row that could be marked.
        rows = np.union1d(
            np.searchsorted(starts, rows, side="right") - 1, np.flatnonzero(np.diff(starts) == 0)
        )
    if not len(rows):
        return {}
    noted = noted_broken(store.folder)
    return {
        row: noted.get(row)
        or Skipped(reader.name(row), "could not be read" if by_sample else NO_CAPTION)
        for row in rows.tolist()
    }
