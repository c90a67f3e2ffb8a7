"""Where the members of tar shards lie, so that samples are read from the disk by position."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence

import numpy as np

from vlkd_cli.data.files.cached_arrays import CACHE_ABOVE_BYTES, CachedArrays, cached_arrays
from vlkd_cli.data.files.fingerprints import digest_files, digest_of
from vlkd_cli.data.files.tar_members import Parts, split_member
from vlkd_cli.data.files.texts import read_at
from vlkd_cli.errors import DataError

COLUMNS = (
    "shard",
    "image",
    "image_bytes",
    "caption",
    "caption_bytes",
    "json",
    "json_bytes",
    "label",
    "captions_before",
    "name",
    "name_bytes",
)
_Place = tuple[int, int]  # offset and size in the shard
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


def index_shards(shards: Sequence[str], parts: Parts) -> CachedArrays:
    """One row per sample, in the order of the shards: see COLUMNS; offsets and sizes in bytes, -1
    where a part is missing.

    A sample whose texts cannot be read has none here; reading them gives the reason.

    Args:
        shards: local tar files, uncompressed.
        parts: which members are wanted.

    Raises:
        DataError: a shard is missing, compressed or damaged.
    """
    for shard in shards:
        if os.path.isdir(shard):
            raise DataError(f"shard {shard} is a folder. Name its files, e.g. {shard}/*.tar.")
        if not os.path.isfile(shard):
            raise DataError(f"shard {shard}: no such file. Check data.path.")
    sizes = [os.path.getsize(shard) for shard in shards]
    times = [os.stat(shard).st_mtime_ns for shard in shards]
    key = digest_of("tar-2", [os.path.realpath(shard) for shard in shards], sizes, times, parts)
    return cached_arrays(
        key, lambda scratch: _arrays(shards, parts), store=sum(sizes) > CACHE_ABOVE_BYTES
    )


def _arrays(shards: Sequence[str], parts: Parts) -> dict[str, np.ndarray]:
    columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
    names = bytearray()
    captions = 0
    for number, shard in enumerate(shards):
        with open(shard, "rb", buffering=0) as file:
            for stem, members in _samples(shard):
                row = {"shard": number, "captions_before": captions, "name": len(names)}
                row["image"], row["image_bytes"] = parts.of_image(members) or (-1, 0)
                for column, suffix in (("caption", parts.caption), ("json", "json")):
                    row[column], row[f"{column}_bytes"] = members.get(suffix or "", (-1, 0))
                names += stem.encode("utf-8", "surrogatepass")
                row["name_bytes"] = len(names) - row["name"]
                row["label"] = _label(file.fileno(), members, parts)
                captions += _num_texts(file.fileno(), members, parts)
                for column, values in columns.items():
                    values.append(row[column])
    columns["captions_before"].append(captions)
    arrays = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
    arrays["names"] = np.frombuffer(bytes(names), dtype=np.uint8)
    digest = digest_of(
        parts, digest_files(shards), [arrays[name].tobytes() for name in COLUMNS], bytes(names)
    )
    return arrays | {"digest": np.frombuffer(digest.encode(), dtype=np.uint8)}


def _num_texts(file: int, members: dict[str, _Place], parts: Parts) -> int:
    wanted = parts.of_texts(members)
    if not parts.texts and parts.caption_key is None:
        return len(wanted)
    try:
        found = parts.texts_in(_contents(file, wanted))
    except ValueError:
        return 0
    return sum(len(texts) for texts in found.values())


def _label(file: int, members: dict[str, _Place], parts: Parts) -> int:
    own = {suffix: place for suffix, place in members.items() if suffix == parts.label}
    try:
        return parts.label_in(_contents(file, own))
    except ValueError:
        return -1


def _contents(file: int, members: dict[str, _Place]) -> dict[str, bytes]:
    return {suffix: read_at(file, *place) for suffix, place in members.items()}


def _samples(shard: str) -> Iterator[tuple[str, dict[str, _Place]]]:
    """Stem, and suffix -> (offset, size), of each run of members with the same stem."""
    stem: str | None = None
    members: dict[str, _Place] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it stores all that it has passed
                found = split_member(member.name) if member.isfile() else None
                if found is None:
                    continue
                if found[0] != stem:
                    if stem is not None:
                        yield stem, members
                    stem, members = found[0], {}
                members[found[1]] = (member.offset_data, member.size)
            _check_end(shard, tar.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError, RecursionError) as error:
        raise DataError(_damage(shard, error)) from None
    if stem is not None:
        yield stem, members


def _check_end(shard: str, end: int) -> None:
    """Tarfile takes a header that it cannot read, or half of one, for the end; the end is a block
    of zeros or of the file."""
    with open(shard, "rb", buffering=0) as file:
        block = os.pread(file.fileno(), tarfile.BLOCKSIZE, end)
    if any(block) or 0 < len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no member begins at byte {end}")


def _damage(shard: str, error: Exception) -> str:
    with open(shard, "rb") as file:
        first = file.read(8)
    for mark, name in _COMPRESSIONS.items():
        if first.startswith(mark):
            return (
                f"shard {shard} is compressed ({name}), but only plain tar files allow random"
                " access. Unpack it, or read it in order with reader webdataset and data.stream:"
                " true."
            )
    return f"shard {shard} is damaged ({error}). Fetch it again, or take it out of data.path."
