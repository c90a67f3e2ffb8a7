"""Files that appear, or replace a former one, only when they are written whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write what `path` shall hold: a file next to it, which takes its place when the
    block ends, and is removed where that fails. The folder is made.

    A device or a pipe, such as `/dev/stdout`, is written itself.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of this process alone: others may write the same file.
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
