"""Digests that detect changes of data without reading all of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

_PROBE_BYTES = 512
MOST_FILES = 10_000
"""Files that are looked into; of larger sets an evenly spaced part."""


def digest_of(*parts: object) -> str:
    """SHA-256 of the parts' representations, shortened."""
    return hashlib.sha256("\0".join(map(repr, parts)).encode("utf-8", "surrogatepass")).hexdigest()[
        :32
    ]


def probed(count: int) -> Iterable[int]:
    """Which of so many files are looked into."""
    return (
        range(count)
        if count <= MOST_FILES
        else (round(k * (count - 1) / (MOST_FILES - 1)) for k in range(MOST_FILES))
    )


def digest_files(paths: Iterable[str]) -> str:
    """Digest of the sizes, middles and ends of local files; a missing file counts as empty.

    The end of a compressed picture depends on all of it (a PNG ends with a checksum, a JPEG with
    its entropy code), and unlike a time stamp it is the same in every copy of the data.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, ValueError):
            digest.update(b"missing")
            continue
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                digest.update(b"missing")
                continue
            size = status.st_size
            digest.update(b"%d:" % size)
            digest.update(os.pread(handle, _PROBE_BYTES, size // 2))
            digest.update(os.pread(handle, _PROBE_BYTES, max(0, size - _PROBE_BYTES)))
        finally:
            os.close(handle)
    return digest.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
