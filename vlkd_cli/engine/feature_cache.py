"""Features of a frozen tower, computed once and read ever after.

Where a tower's backbone is frozen and its input never changes, its features are rows of a memory-mapped file; training then reads the
rows, and neither runs the tower nor decodes its images. The file is keyed by what determines the features (weights, preprocessing,
data, precision), so another run with the same tower and data finds it filled, and an interrupted filling goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlkd_cli import console
from vlkd_cli.data.loader import in_order
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.data.views import ImageView
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.precision import autocast
from vlkd_cli.evaluation.encode import evaluating
from vlkd_cli.evaluation.feature_store import FeatureStore
from vlkd_cli.recipe.types import Precision
from vlkd_cli.towers.tower import Tower

ROWS_PER_WINDOW = 1024


def cache_folder(setting: str | None) -> Path:
    """Where features are kept: the recipe's `train.cache_dir`, else VLKD_CACHE, else ~/.cache/vlkd."""
    return Path(setting or os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd").expanduser()


def store_features(
    tower: Tower, reader: Reader, folder: Path, *, device: torch.device, precision: Precision, batch_size: int, workers: int
) -> Path:
    """Fill the table of a tower's features over a data set and return its `.npy` file.

    Rows are the images in the reader's order, or all captions (`Reader.caption_start`). The processes of one machine share the work;
    each machine fills the table of its own cache folder.

    Returns:
        The file of `[rows, feature_width]` float32, complete on return, on every rank.
    """
    is_image = tower.modality == "image"
    rows = len(reader) if is_image else reader.num_captions
    parts = (tower.digest(), reader.fingerprint(), tower.modality, repr(tower.image_input), precision, str(tower.feature_width))
    place = folder / "train_features" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    if runtime.local_rank() == 0:
        FeatureStore(place, rows, tower.feature_width)
    runtime.barrier()
    store = FeatureStore(place, rows, tower.feature_width)
    positions = np.arange(len(reader))
    starts = positions if is_image else np.fromiter((reader.caption_start(int(p)) for p in positions), dtype=np.int64, count=len(positions))
    windows = [window for window in np.split(positions, range(ROWS_PER_WINDOW, len(positions), ROWS_PER_WINDOW)) if len(window)]
    ends = np.append(starts[1:], rows)
    missing = [window for window in windows if not store.done[starts[window[0]] : ends[window[-1]]].all()]
    if missing and runtime.is_main():
        console.say(f"Computing the features of tower '{tower.name}' once: {rows:,} {'images' if is_image else 'captions'}.")
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if runtime.is_distributed() else 1
    with evaluating(tower), torch.no_grad():
        for window in missing[runtime.local_rank() :: local_world]:
            blocks = (
                _image_features(tower, reader, window, device, precision, batch_size, workers)
                if is_image
                else _caption_features(tower, reader, window, device, precision, batch_size)
            )
            features = torch.cat(list(blocks)).numpy()
            store.write(np.arange(starts[window[0]], starts[window[0]] + len(features)), features)
    runtime.barrier()
    return place / "features.npy"


def _image_features(
    tower: Tower, reader: Reader, window: np.ndarray, device: torch.device, precision: Precision, batch_size: int, workers: int
) -> Iterator[Tensor]:
    assert tower.image_input is not None
    views = {"image": ImageView(tower.image_input, None)}
    for batch in in_order(reader, views, [int(p) for p in window], batch_size=batch_size, workers=workers):
        with autocast(precision, device):
            yield tower.features(batch.to(device).inputs["image"]).float().cpu()


def _caption_features(
    tower: Tower, reader: Reader, window: np.ndarray, device: torch.device, precision: Precision, batch_size: int
) -> Iterator[Tensor]:
    captions = [caption for position in window for caption in reader.captions(int(position))]
    # Captions of similar length share a batch, so that little of it is padding.
    order = sorted(range(len(captions)), key=lambda row: len(captions[row]))
    features = torch.empty(len(captions), tower.feature_width)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        tokens = {name: tensor.to(device) for name, tensor in tower.tokenize([captions[row] for row in chosen]).items()}
        with autocast(precision, device):
            features[chosen] = tower.features(tokens).float().cpu()
    yield features
