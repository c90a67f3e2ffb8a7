"""Files anywhere that fsspec reaches: local paths as they are, URLs fetched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

from vlkd_cli.catalog import did_you_mean_path
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.files.cached_copies import cached_copy
from vlkd_cli.errors import DataError


def is_url(address: str) -> bool:
    """Whether a path is a URL, e.g. s3://bucket/key; file:// counts as one."""
    return "://" in address


def expanded(address: str) -> str:
    """A path with `~` replaced by the home folder; URLs as they are."""
    return address if is_url(address) else os.path.expanduser(address)


def joined(root: str, address: str) -> str:
    """A path below a root, where it is not absolute or a URL already; `~/` begins at home."""
    if address.startswith("~/"):
        return os.path.expanduser(address)
    if is_url(address) or os.path.isabs(address) or not root:
        return address
    return root.rstrip("/") + "/" + address


def parent_of(address: str) -> str:
    """The folder of a path or URL."""
    return address.rpartition("/")[0] if is_url(address) else os.path.dirname(address)


def braced(address: str) -> list[str]:
    """The addresses that braces stand for: `train-{000..127}.tar`.

    Raises:
        DataError: a brace is not closed.
    """
    from braceexpand import braceexpand

    try:
        return list(braceexpand(address))
    except ValueError:
        raise DataError(f"data.path {address}: a brace is not closed.") from None


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


def local_copy(address: str, what: str) -> Path:
    """A local file with the content of a path or URL; compressed files (.gz, .bz2, .xz, .zst) are
    unpacked.

    Copies are in the cache folder, keyed by the address and what distinguishes versions of the
    file (size, time, etag).

    Raises:
        DataError: it is missing or cannot be read.
    """
    if is_url(address):
        return _fetched(address, what)
    address = expanded(address)
    if os.path.isdir(address):
        raise DataError(f"{what} {address} is a folder; name a file.")
    if not os.path.isfile(address):
        raise DataError(
            f"{what} {address}: no such file. Check data.path (it is relative to {Path.cwd()})."
            f"{did_you_mean_path(address)}"
        )
    suffix = address.rpartition(".")[2]
    return _unpacked(address, suffix, what) if suffix in _COMPRESSIONS else Path(address)


_COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd"}


def _unpacked(address: str, suffix: str, what: str) -> Path:
    from fsspec.compression import compr

    if _COMPRESSIONS[suffix] not in compr:
        raise DataError(f"{what} {address}: pip install zstandard, or unpack the file first.")
    status = os.stat(address)

    def write(copy: BinaryIO) -> None:
        with open(address, "rb") as file, compr[_COMPRESSIONS[suffix]](file, mode="rb") as source:
            shutil.copyfileobj(source, copy, 1 << 20)

    try:
        return cached_copy(
            f"{os.path.realpath(address)}\0{status.st_size} {status.st_mtime_ns}", write
        )
    except DataError:
        raise
    except Exception as error:  # every compression has exceptions of its own
        raise DataError(
            f"{what} {address} cannot be unpacked ({type(error).__name__}: {error}). Fetch it"
            " again."
        ) from None


def _fetched(url: str, what: str) -> Path:
    import fsspec

    def write(copy: BinaryIO) -> None:
        with fsspec.open(url, "rb", compression="infer") as source:
            shutil.copyfileobj(source, copy, 1 << 20)

    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
        version = sorted((key, str(value)) for key, value in filesystem.info(inner).items())
        return cached_copy(f"{url}\0{version!r}", write)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{what} {url}: no such file.") from None
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{what} {url}: {error}. Install the fsspec package of this protocol."
        ) from None
    except Exception as error:  # every fsspec protocol has exceptions of its own
        raise DataError(
            f"{what} {url} cannot be fetched ({type(error).__name__}: {error})."
        ) from error
