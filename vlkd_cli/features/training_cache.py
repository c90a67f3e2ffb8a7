"""Features of a frozen tower, computed once and read ever after.

Where a tower's backbone is frozen and its input never changes, its features are rows of a
memory-mapped file; training then reads the rows, and neither runs the tower nor decodes its images.
The file is keyed by what determines the features (weights, preprocessing, data, precision), so
another run with the same tower and data finds it filled, and an interrupted filling goes on where
it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.data.batch import Broken, Skipped
from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import ImageView
from vlkd_cli.distributed import runtime
from vlkd_cli.features.encode import evaluating
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.preprocessing import ImageInput
from vlkd_cli.recipe.types import Precision
from vlkd_cli.towers.tower import Tower

SAMPLES_PER_WINDOW = 1024


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
) -> Stored:
    """Fill the table of a tower's features over a data set.

    Rows are the images in the reader's order, or all captions (`Reader.caption_start`). The
    processes of one machine share the work; each machine fills the table of its own cache folder.

    Returns:
        The table `[rows, feature_width]` float32, complete on return, on every rank.
    """
    is_image = tower.modality == "image"
    rows = len(reader) if is_image else reader.num_captions
    parts = (
        tower.digest(),
        reader.fingerprint(),
        tower.modality,
        repr(tower.input if isinstance(tower.input, ImageInput) else None),
        precision,
        str(tower.feature_width),
    )
    place = folder / "train_features" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    if runtime.local_rank() == 0:
        FeatureStore(place, rows, tower.feature_width)
    runtime.barrier()
    store = FeatureStore(place, rows, tower.feature_width)
    missing = [
        positions
        for positions in _windows(len(reader))
        if not store.done[_rows_of(reader, positions, is_image)].all()
    ]
    if missing and runtime.is_main():
        console.say(
            f"Computing the features of tower '{tower.name}' once: {rows:,}"
            f" {'images' if is_image else 'captions'}."
        )
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if runtime.is_distributed() else 1
    # Every process must have read what is missing before one of them fills it in.
    runtime.barrier()
    with evaluating(tower), torch.no_grad():
        for positions in missing[runtime.local_rank() :: local_world]:
            if is_image:
                features = _image_features(
                    tower, reader, positions, store.folder, device, precision, batch_size, workers
                )
            else:
                features = _caption_features(
                    tower, reader, positions, store.folder, device, precision, batch_size
                )
            store.write(np.arange(rows)[_rows_of(reader, positions, is_image)], features.numpy())
    runtime.barrier()
    return Stored(place / "features.npy", _read_broken(place / "broken.csv"))


def _windows(count: int) -> list[range]:
    return [
        range(start, min(start + SAMPLES_PER_WINDOW, count))
        for start in range(0, count, SAMPLES_PER_WINDOW)
    ]


def _rows_of(reader: Reader, positions: range, is_image: bool) -> slice:
    if is_image:
        return slice(positions.start, positions.stop)
    return slice(reader.caption_start(positions.start), reader.caption_start(positions.stop))


def _image_features(
    tower: Tower,
    reader: Reader,
    positions: range,
    folder: Path | None,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int,
) -> Tensor:
    """`[len(positions), feature_width]`; zeros where an image cannot be read, which `broken.csv`
    names."""
    assert folder is not None
    features = torch.zeros(len(positions), tower.feature_width)
    for batch in in_order(
        reader,
        {"image": ImageView(tower.input, None)},
        positions,
        batch_size=batch_size,
        workers=workers,
        skip=True,
    ):
        rows = batch.indices - positions.start
        if len(rows):
            with autocast(precision, device):
                features[rows] = tower.features(batch.to(device).inputs["image"]).float().cpu()
        if batch.skipped:
            reasons = {skipped.name: skipped.reason for skipped in batch.skipped}
            lost = [row for row in positions if reader.name(row) in reasons]
            with (folder / "broken.csv").open("a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(
                    (row, reader.name(row), reasons[reader.name(row)]) for row in lost
                )
    return features


def _caption_features(
    tower: Tower,
    reader: Reader,
    positions: range,
    folder: Path | None,
    device: torch.device,
    precision: Precision,
    batch_size: int,
) -> Tensor:
    """Features of all captions of the samples; zeros where a sample has none that can be read,
    which `broken.csv` names."""
    assert folder is not None
    first = reader.caption_start(positions.start)
    captions: dict[int, str] = {}
    lost: list[tuple[int, str, str]] = []
    for position in positions:
        reason = "has no caption"
        try:
            own = reader.captions(position)
        except Broken as error:
            own, reason = (), str(error)
        if any(caption.strip() for caption in own):
            captions |= dict(enumerate(own, reader.caption_start(position) - first))
        else:
            lost.append((position, reader.name(position), reason))
    if lost:
        with (folder / "broken.csv").open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lost)
    # Captions of similar length share a batch, so that little of it is padding.
    order = sorted(captions, key=lambda row: len(captions[row]))
    features = torch.zeros(reader.caption_start(positions.stop) - first, tower.feature_width)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = {
            name: tensor.to(device)
            for name, tensor in tower.input([captions[row] for row in chosen]).items()
        }
        with autocast(precision, device):
            features[chosen] = tower.features(tokens).float().cpu()
    return features


def _read_broken(path: Path) -> dict[int, Skipped]:
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {int(row): Skipped(name, reason) for row, name, reason in csv.reader(file)}
