"""Files anywhere that fsspec reaches: local paths as they are, URLs fetched."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_arrays import data_cache
from vlkd_cli.errors import DataError


def is_url(place: str) -> bool:
    """Whether a path is a URL, e.g. s3://bucket/key; file:// counts as one."""
    return "://" in place


def joined(root: str, place: str) -> str:
    """A path below a root, where it is not absolute or a URL already."""
    if is_url(place) or os.path.isabs(place) or not root:
        return place
    return root.rstrip("/") + "/" + place


def parent_of(place: str) -> str:
    """The folder that a path or URL lies in."""
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place)


def fetch_bytes(url: str) -> bytes:
    """The content of a URL.

    Raises:
        Broken: it cannot be fetched.
    """
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        raise Broken("no such file") from None
    except (ImportError, ValueError) as error:
        raise DataError(f"{url}: {error}. Install the fsspec package of this protocol.") from None
    except Exception as error:  # every fsspec protocol has exceptions of its own
        raise Broken(f"{type(error).__name__}: {error}") from error


def local_copy(place: str, what: str) -> Path:
    """A local file with the content of a path or URL; compressed files (.gz, .bz2, .xz, .zst) are
    unpacked.

    Copies lie in the cache folder, keyed by the place and what tells its versions apart (size,
    time, etag).

    Raises:
        DataError: it is missing or cannot be read.
    """
    compressed = place.rpartition(".")[2] in ("gz", "bz2", "xz", "zst")
    if not is_url(place):
        path = Path(place).expanduser()
        if path.is_dir():
            raise DataError(f"{what} {place} is a folder; name a file.")
        if not path.is_file():
            raise DataError(
                f"{what} {place}: no such file. Check data.path (it is relative to {Path.cwd()})."
            )
        if not compressed:
            return path
    import fsspec

    try:
        filesystem, inner = fsspec.core.url_to_fs(place)
        version = repr(sorted((key, str(value)) for key, value in filesystem.info(inner).items()))
        target = (
            data_cache()
            / "copies"
            / (hashlib.sha256(f"{place}\0{version}".encode()).hexdigest()[:32] + Path(inner).suffix)
        )
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with fsspec.open(place, "rb", compression="infer") as source:
                _copy(source, target)
        return target
    except FileNotFoundError:
        raise DataError(f"{what} {place}: no such file.") from None
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{what} {place}: {error}. Install the fsspec package of this protocol."
        ) from None
    except Exception as error:  # every fsspec protocol has exceptions of its own
        raise DataError(
            f"{what} {place} cannot be fetched ({type(error).__name__}: {error})."
        ) from error


def _copy(source: Any, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(handle, "wb") as copy:
        while block := source.read(1 << 20):
            copy.write(block)
    os.replace(name, target)
