"""Array files as numpy writes them, which may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Literal

import numpy as np


def load_npy(source: Path | IO[bytes], mmap_mode: Literal["r", "c"] | None = None) -> Any:
    """The array of a `.npy` file; nothing is unpickled.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold an array.
    """
    # A pipe would be waited for.
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise OSError(0, f"{source} is a folder, pipe, socket or device")
    try:
        array = np.load(source, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError:
        raise
    # numpy evaluates the header as Python source: damaged bytes fail in any way there is.
    except Exception as error:
        raise ValueError(f"not an array file ({type(error).__name__})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive instead of an array file")
    return array
