"""Where the members of tar shards lie, so that samples are read from the disk by position."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlkd_cli.data.files.cached_arrays import KEEP_ABOVE_BYTES, KeptArrays, kept_arrays
from vlkd_cli.data.files.fingerprints import digest_files, digest_of
from vlkd_cli.errors import DataError

COLUMNS = (
    "shard",
    "image",
    "image_bytes",
    "caption",
    "caption_bytes",
    "label",
    "captions_before",
    "name",
    "name_bytes",
)


class Parts(NamedTuple):
    """Which members of a sample are what, by their suffix."""

    images: Sequence[str]
    caption: str
    caption_key: str | None
    label: str


def index_shards(shards: Sequence[str], parts: Parts) -> KeptArrays:
    """One row per sample, in the order of the shards: see COLUMNS; offsets and sizes in bytes, -1
    where a part is missing.

    Args:
        shards: local tar files, uncompressed.
        parts: which members are wanted.

    Raises:
        DataError: a shard is missing or damaged.
    """
    for shard in shards:
        if not os.path.isfile(shard):
            raise DataError(f"shard {shard}: no such file. Check data.path.")
    sizes = [os.path.getsize(shard) for shard in shards]
    key = digest_of(
        "tar-1",
        [os.path.realpath(shard) for shard in shards],
        sizes,
        [os.stat(s).st_mtime_ns for s in shards],
        parts,
    )

    def build(scratch: Path) -> dict[str, np.ndarray]:
        columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
        names = bytearray()
        captions = 0
        for number, shard in enumerate(shards):
            for stem, members in _samples(shard):
                image = next(
                    (members[suffix] for suffix in parts.images if suffix in members), None
                )
                caption = members.get(parts.caption)
                row = {
                    "shard": number,
                    "captions_before": captions,
                    "label": -1,
                    "name": len(names),
                }
                row["image"], row["image_bytes"] = image or (-1, 0)
                row["caption"], row["caption_bytes"] = caption or (-1, 0)
                names += stem.encode("utf-8", "surrogateescape")
                row["name_bytes"] = len(names) - row["name"]
                if parts.label in members:
                    row["label"] = _number(_content(shard, members[parts.label]))
                captions += (
                    0
                    if caption is None
                    else (
                        len(captions_in(_content(shard, caption), parts))
                        if parts.caption_key
                        else 1
                    )
                )
                for column, values in columns.items():
                    values.append(row[column])
        columns["captions_before"].append(captions)
        arrays = {name: np.array(values, dtype=np.int64) for name, values in columns.items()}
        arrays["names"] = np.frombuffer(bytes(names), dtype=np.uint8)
        digest = digest_of(
            parts, digest_files(shards), [arrays[name].tobytes() for name in COLUMNS], bytes(names)
        )
        return arrays | {"digest": np.frombuffer(digest.encode(), dtype=np.uint8)}

    return kept_arrays(key, build, keep=sum(sizes) > KEEP_ABOVE_BYTES)


def captions_in(content: bytes, parts: Parts) -> list[str]:
    """The captions of a text member, or under `caption_key` of a json member (a text or a list of
    texts).

    Raises:
        ValueError: the content is not as expected.
    """
    text = content.decode("utf-8")
    if parts.caption_key is None:
        return [text.strip()]
    found: Any = json.loads(text)
    if not isinstance(found, dict) or parts.caption_key not in found:
        return []
    captions = found[parts.caption_key]
    return [
        str(caption).strip()
        for caption in (captions if isinstance(captions, list) else [captions])
        if caption is not None
    ]


def _samples(shard: str) -> Any:
    """(stem, suffix -> (offset, size)) of each run of members with the same stem."""
    stem: str | None = None
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                name, _, suffix = file.partition(".")
                own = f"{folder}/{name}" if folder else name
                if own != stem:
                    if members:
                        yield stem, members
                    stem, members = own, {}
                members[suffix.lower()] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # or the tar keeps every member that it has passed
            # tarfile takes a header that it cannot read, or half of one, for the end; the end is a
            # block of zeros or of the file.
            end: int = tar.offset  # type: ignore[attr-defined]
            block = _content(shard, (end, tarfile.BLOCKSIZE))
            if any(block) or 0 < len(block) < tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no member begins at byte {end}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"shard {shard} is damaged ({error}). Fetch it again, or take it out of data.path."
        ) from None
    if members:
        yield stem, members


def _content(shard: str, part: tuple[int, int]) -> bytes:
    with open(shard, "rb", buffering=0) as file:
        return os.pread(file.fileno(), part[1], part[0])


def _number(content: bytes) -> int:
    try:
        return int(content)
    except ValueError:
        return -1
