"""How the C library hands out memory to a training step on CPUs."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # names and numbers of glibc's malloc.h
_LARGEST = 2**31 - 1
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Retain freed memory in this process instead of returning it to the system; whether the C
    library can.

    A step allocates and frees the same large tensors as the one before. By default each of them is
    fetched from the system again, and the
    kernel clears every page of it again: a tenth of a small model's step.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST), (_M_TOP_PAD, _GROWTH_BYTES))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
