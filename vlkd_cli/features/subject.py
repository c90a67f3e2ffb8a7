"""What is encoded and evaluated, and with what means."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlkd_cli.recipe.types import Precision

if TYPE_CHECKING:
    from vlkd_cli.checkpoint import Source
    from vlkd_cli.towers.tower import Tower


@dataclass
class Subject:
    """What is evaluated, and with what means.

    Evaluation is split over the ranks of the process group that is up, if one is; every rank gets
    the same results back.
    """

    image: Tower | None
    text: Tower | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    batch_size: int = 64
    workers: int = 0
    cache: Path | None = None
    """Folder where features are kept between suites and runs; None: kept in memory for this
    evaluation only."""
    output: Path | None = None
    """Folder for files that a suite writes (predictions, tables); None: nothing is written."""
    data_root: Path | None = None
    """`--data ROOT`: where data sets are looked up by name."""
    model: Source | None = None
    """Which checkpoint the towers come from; None: they are as their builders gave them."""
    image_start: Tower | None = None
    """The image tower before training, for WiSE-FT."""
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Feature tables of this evaluation, open or in memory; `run_suites` empties it at its end."""
