"""What a table of cached features holds, in a file next to it, so that `vlkd cache` can list, move
and remove tables without the tower that made them."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from vlkd_cli import console
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.whole_file import whole_file

ABOUT = "about.json"
FOLDERS = ("train_features", "features")
"""Folders of the cache folder that hold tables: those of training, and those of evaluation."""


@dataclass(frozen=True)
class About:
    """What determines a table.

    Args:
        tower: name of the tower in the recipe that made the table.
        digest: of the tower's weights and settings.
        output: of the tower.
        view: what of a sample it reads: a view's name, or "texts".
        data: fingerprint of the data.
        draw: number of the augmentation; None: no random augmentation.
        seed: of the augmentations.
    """

    tower: str
    digest: str
    output: str
    view: str
    data: str
    draw: int | None = None
    seed: int | None = None


def remember(folder: Path, about: About) -> None:
    """Write the file next to a table, or note that the table is used again."""
    path = folder / ABOUT
    # A table of another user may be read only, a folder may have the note's name: the table works
    # without it.
    with contextlib.suppress(OSError):
        if path.is_file():
            os.utime(path)
            return
        with whole_file(path) as partial:
            partial.write_text(json.dumps(asdict(about), indent=1), encoding="utf-8")


def read_about(folder: Path) -> About | None:
    """What is noted next to a table; None where nothing is, or nothing that can be read."""
    path = folder / ABOUT
    try:
        return About(**read_json(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        console.warn(f"{path} is damaged; the table next to it is listed without its tower.")
        return None
