"""Where vlkd stores what it downloads or computes once; without torch, so that commands answer
quickly."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def cache_folder(setting: str | Path | None = None) -> Path:
    """The cache folder: the recipe's `cache_dir`, else VLKD_CACHE, else ~/.cache/vlkd."""
    return Path(
        setting or os.environ.get("VLKD_CACHE") or Path.home() / ".cache" / "vlkd"
    ).expanduser()


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each with the permissions of the folder that it lies in: in
    a cache that a group may write, so are the folders below it.

    Raises:
        OSError: a folder cannot be created.
    """
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # another user was quicker
        folder.chmod(folder.parent.stat().st_mode & 0o7777)
