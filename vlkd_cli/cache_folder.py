"""Where vlkd stores what it downloads or computes once; without torch, so that commands answer
quickly."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(setting: str | Path | None = None) -> Path:
    """The cache folder: the recipe's `cache_dir`, else VLKD_CACHE, else ~/.cache/vlkd."""
    return Path(
        setting or os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd"
    ).expanduser()
