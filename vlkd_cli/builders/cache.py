"""Where what was fetched or computed once is kept; without torch, so that commands answer
quickly."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(setting: str | Path | None = None) -> Path:
    """Where downloaded weights and listings are kept: the recipe's `cache_dir`, else VLKD_CACHE,
    else ~/.cache/vlkd."""
    return Path(
        setting or os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd"
    ).expanduser()
