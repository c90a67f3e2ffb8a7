"""The positions of the members of tar shards, so that samples are read from the disk by position.

Each shard has an index of its own, 16 bytes for a sample with an image and a text. The processes of
one machine share the work of making them; what was interrupted continues. Joined, they are one set
of memory-mapped arrays that all processes of the machine read.
"""

from __future__ import annotations

import io
import os
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.batch import Lost
from vlkd_cli.data.files.cached_arrays import (
    CACHE_ABOVE_BYTES,
    CachedArrays,
    cached_arrays,
    data_cache,
    is_cached,
    replace_file,
)
from vlkd_cli.data.files.class_numbers import dense_numbers
from vlkd_cli.data.files.fingerprints import digest_files, digest_of
from vlkd_cli.data.files.tar_members import JSON, Parts, split_member
from vlkd_cli.data.files.tar_walk import BLOCK, CUT_OFF, NO_END, NO_HEADER, End, Gap, Member, walk
from vlkd_cli.data.files.texts import read_at
from vlkd_cli.errors import DataError
from vlkd_cli.ranks import local_rank_and_size

MISSING = np.iinfo(np.uint32).max
"""Instead of the size of a member that a sample does not have."""
_REASONS = (NO_HEADER, CUT_OFF, NO_END, "the disk cannot read it after byte {}")
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
_Place = tuple[int, int]  # block and size in the shard


class ShardIndex(NamedTuple):
    """The samples of all shards, in their order.

    Args:
        arrays: `members` `[N, 2 * M]` uint32, block and size of the image and of each text member
            (`Parts.members`); the size is MISSING where a sample lacks one, and the block then
            that of any of its members. `starts` `[S + 1]`: rows before each shard. Where they are
            needed: `labels` `[N]`, `label_ids`, `captions_before` `[N + 1]`, `targets` `[N, T]`.
            `digest` of all.
        lost: what cannot be read: whole shards and parts of them, with the samples they held as far
            as that can be estimated.
    """

    arrays: CachedArrays
    lost: list[Lost]


def index_shards(shards: Sequence[str], parts: Parts) -> ShardIndex:
    """The index of local, uncompressed tar files. A shard that is missing or damaged counts in
    `lost`; a sample whose texts cannot be read has none here, and reading them gives the reason.

    Raises:
        DataError: no shard is there, one is compressed or a folder, or none holds a sample.
    """
    files = [_state(shard) for shard in shards]
    if not any(files):
        raise DataError(f"shard {shards[0]}: no such file. Check data.path.")
    keys = ["" if state is None else digest_of("shard-2", *state, parts) for state in files]
    total = sum(state[1] for state in files if state is not None)
    key, store = digest_of("shards-2", keys), total > CACHE_ABOVE_BYTES
    if store and not is_cached(key):
        _index_together(shards, keys, parts)
    arrays = cached_arrays(
        key, lambda scratch: _joined(shards, keys, parts, scratch, store=store), store=store
    )
    lost = _lost(shards, files, arrays)
    if not len(arrays["members"]):
        if lost:
            raise DataError(
                f"shard {lost[0].name.rpartition(':')[0] or lost[0].name} is damaged"
                f" ({lost[0].reason}). Fetch it again, or take it out of data.path."
            )
        raise DataError(f"the shards of data.path hold no sample, e.g. {shards[0]}.")
    return ShardIndex(arrays, lost)


def index_shard(shard: str, parts: Parts) -> dict[str, np.ndarray]:
    """The index of one shard, see `ShardIndex`, without `starts`; `gaps` `[G, 2]`: byte,
    reason and whether nothing follows, of each part that cannot be read."""
    members, labels, counts = array("I"), array("q"), array("I")
    torn, targets = array("b"), array("f")
    gaps: list[tuple[int, int, bool]] = []
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for found in _samples(file.fileno(), size, parts, gaps):
            members.extend(found.row)
            torn.append(found.is_torn)
            labels.append(_label(file.fileno(), found.members, parts))
            counts.append(_num_texts(file.fileno(), found.members, parts))
            targets.extend(_targets(file.fileno(), found.members, parts))
    rows = np.frombuffer(members, dtype=np.uint32) if members else np.zeros(0, np.uint32)
    arrays: dict[str, np.ndarray] = {
        "members": rows.reshape(-1, 2 * len(parts.members)),
        "labels": np.array(labels, dtype=np.int64),
        "counts": np.array(counts, dtype=np.uint32),
    }
    if parts.targets:
        arrays["targets"] = np.array(targets, dtype=np.float32).reshape(-1, len(parts.targets))
    whole = _whole(arrays, np.array(torn, dtype=np.bool_), parts)
    arrays = {name: values[whole] for name, values in arrays.items()}
    if (arrays["labels"] < 0).all():
        del arrays["labels"]
    if not parts.text_members or (arrays["counts"] == 1).all():
        del arrays["counts"]
    digest = digest_of(parts, digest_files([shard]), [each.tobytes() for each in arrays.values()])
    arrays["digest"] = np.frombuffer(digest.encode(), dtype=np.uint8)
    arrays["gaps"] = np.array(gaps, dtype=np.int64).reshape(-1, 3)
    return arrays


class _Found(NamedTuple):
    row: list[int]
    members: dict[str, _Place]
    is_torn: bool


def _samples(
    file: int, size: int, parts: Parts, gaps: list[tuple[int, int, bool]]
) -> Iterator[_Found]:
    """Each run of members with the same stem; it is torn where a gap lies in it or next to it."""
    stem, members, is_torn, after_gap = "", dict[str, _Place](), False, False
    for found in _walk(file, size):
        if isinstance(found, Gap):
            gaps.append((found.byte, _REASONS.index(found.reason), found.is_end))
            is_torn = after_gap = True
            continue
        if isinstance(found, End):
            # An empty file, or one that ends in the middle of a sample.
            if not found.is_marked and _lacks(members, parts):
                gaps.append((size, _REASONS.index(CUT_OFF), True))
                is_torn = True
            elif not found.is_usual:
                gaps.append((found.byte, _REASONS.index(NO_END), True))
                is_torn = is_torn or not found.is_marked
            break
        named = split_member(found.path)
        if named is None or found.size >= MISSING or found.block > MISSING:
            continue
        if named[0] != stem:
            if members:
                yield _Found(_row(members, parts), members, is_torn)
            stem, members, is_torn = named[0], {}, after_gap
        after_gap = False
        members[named[1]] = (found.block, found.size)
    if members:
        yield _Found(_row(members, parts), members, is_torn)


def _walk(file: int, size: int) -> Iterator[Member | Gap | End]:
    byte = 0
    try:
        for found in walk(file, size):
            yield found
            byte = found.block * BLOCK if isinstance(found, Member) else byte
    except OSError:
        yield Gap(byte, _REASONS[-1], is_end=True)


def _row(members: dict[str, _Place], parts: Parts) -> list[int]:
    anywhere = (next(iter(members.values()))[0], int(MISSING))
    row = list(parts.of_image(members) or anywhere)
    for suffix in parts.members[1:]:
        row += members.get(suffix, anywhere)
    return row


def _lacks(members: dict[str, _Place], parts: Parts) -> bool:
    return parts.of_image(members) is None or not set(parts.members[1:]) <= set(members)


def _whole(arrays: dict[str, np.ndarray], torn: np.ndarray, parts: Parts) -> np.ndarray:
    """Which samples count: a torn one if it has all that an intact one of the shard has; without an
    intact one, all that is read."""
    has = arrays["members"][:, 1::2] != MISSING
    has = np.column_stack([has, arrays["labels"] >= 0])
    needed = has[~torn].any(axis=0)
    if torn.all():
        needed[:-1] = True
    complete: np.ndarray = (has | ~needed).all(axis=1)
    counts: np.ndarray = ~torn | complete
    return counts


def _num_texts(file: int, members: dict[str, _Place], parts: Parts) -> int:
    wanted = parts.of_texts(members)
    if parts.counts_members:
        return len(wanted)
    try:
        found = parts.texts_in(_contents(file, wanted))
    except (ValueError, OSError):
        return 0
    return sum(len(texts) for texts in found.values())


def _label(file: int, members: dict[str, _Place], parts: Parts) -> int:
    if parts.label not in members:
        return -1
    try:
        return parts.label_in(_contents(file, {parts.label: members[parts.label]}))
    except (ValueError, OSError):
        return -1


def _targets(file: int, members: dict[str, _Place], parts: Parts) -> list[float]:
    wanted = {JSON: members[JSON]} if parts.targets and JSON in members else {}
    try:
        return parts.targets_in(_contents(file, wanted))
    except (ValueError, OSError):
        return parts.targets_in({})


def _contents(file: int, members: dict[str, _Place]) -> dict[str, bytes]:
    return {name: read_at(file, block * BLOCK, size) for name, (block, size) in members.items()}


def _state(shard: str) -> tuple[str, int, int] | None:
    """What identifies a version of a shard: path, size, time. None: it is not there."""
    if os.path.isdir(shard):
        raise DataError(f"shard {shard} is a folder. Name its files, e.g. {shard}/*.tar.")
    try:
        status = os.stat(shard)
        with open(shard, "rb") as file:
            first = file.read(8)
    except OSError:
        return None
    for mark, name in _COMPRESSIONS.items():
        if first.startswith(mark):
            raise DataError(
                f"shard {shard} is compressed ({name}), but only plain tar files allow random"
                " access. Unpack it, or read it in order with reader webdataset and data.stream:"
                " true."
            )
    return os.path.realpath(shard), status.st_size, status.st_mtime_ns


def _index_together(shards: Sequence[str], keys: Sequence[str], parts: Parts) -> None:
    """Make the index of every shard that has none. The processes of this machine begin at different
    shards, and each looks for what the others left."""
    rank, count = local_rank_and_size()
    missing = [number for number, key in enumerate(keys) if key and not _file(key).is_file()]
    if missing:
        console.say(f"Indexing {len(missing):,} shards once, e.g. {shards[missing[0]]}.")
    own = missing[rank::count]
    for number in (*own, *reversed(missing)):
        if not _file(keys[number]).is_file():
            _store(keys[number], index_shard(shards[number], parts))


def _file(key: str) -> Path:
    return data_cache() / "shards" / key[:2] / f"{key}.npz"


def _store(key: str, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    replace_file(_file(key), content.getvalue())


def _of_shard(shard: str, key: str, parts: Parts, *, store: bool) -> dict[str, np.ndarray]:
    if store:
        try:
            with np.load(_file(key), allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            pass  # missing, cut off or overwritten: made again
    arrays = index_shard(shard, parts)
    if store:
        _store(key, arrays)
    return arrays


def _joined(
    shards: Sequence[str], keys: Sequence[str], parts: Parts, scratch: Path, *, store: bool
) -> dict[str, np.ndarray]:
    """The arrays of all shards one after another; large ones lie in files of `scratch`."""
    sizes, digests, gaps = [], [], []
    members = (scratch / "members.bin").open("wb")
    labels, counts = (scratch / "labels.bin").open("wb"), (scratch / "counts.bin").open("wb")
    targets = (scratch / "targets.bin").open("wb")
    has_labels = has_counts = False
    with members, labels, counts, targets:
        for number, (shard, key) in enumerate(zip(shards, keys, strict=True)):
            own = _of_shard(shard, key, parts, store=store) if key else {}
            size = len(own["members"]) if own else 0
            sizes.append(size)
            if not own:
                continue
            digests.append(own["digest"].tobytes())
            gaps += [(number, *gap) for gap in own["gaps"].tolist()]
            own["members"].tofile(members)
            own.get("labels", np.full(size, -1, dtype=np.int64)).tofile(labels)
            own.get("counts", np.ones(size, dtype=np.uint32)).tofile(counts)
            own.get("targets", np.zeros(0, dtype=np.float32)).tofile(targets)
            has_labels, has_counts = has_labels or "labels" in own, has_counts or "counts" in own
    width, total = 2 * len(parts.members), sum(sizes)
    digest = np.frombuffer(digest_of(digests).encode(), dtype=np.uint8)
    arrays = {
        "members": _mapped(scratch / "members.bin", np.uint32, total * width).reshape(-1, width),
        "starts": np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        "gaps": np.array(gaps, dtype=np.int64).reshape(-1, 4),
        "digest": digest,
    }
    if parts.targets:
        count = total * len(parts.targets)
        found = _mapped(scratch / "targets.bin", np.float32, count)
        arrays["targets"] = found.reshape(-1, len(parts.targets))
    if has_labels:
        found, ids = dense_numbers(_mapped(scratch / "labels.bin", np.int64, total))
        arrays["labels"] = found.astype(np.int32)
        if ids is not None:
            arrays["label_ids"] = np.array([int(each) for each in ids], dtype=np.int64)
    if has_counts:
        before = np.concatenate(
            [[0], np.cumsum(_mapped(scratch / "counts.bin", np.uint32, total), dtype=np.int64)]
        )
        arrays["captions_before"] = before.astype(np.uint32 if before[-1] < MISSING else np.int64)
    return arrays


def _mapped(file: Path, kind: type, count: int) -> np.ndarray:
    return np.memmap(file, dtype=kind, mode="r") if count else np.zeros(0, dtype=kind)


def _lost(
    shards: Sequence[str], files: Sequence[tuple[str, int, int] | None], arrays: CachedArrays
) -> list[Lost]:
    """Shards that are missing, and gaps in others. A shard that is gone counts as the mean of the
    intact ones, one that was cut off as what it lacks to it; one that only ends unusually, as some
    programs write it, counts if it lacks something."""
    sizes = np.diff(arrays["starts"])
    ends = {int(shard) for shard, _, _, is_end in arrays["gaps"].tolist() if is_end}
    intact = [n for n, state in enumerate(files) if state is not None and n not in ends]
    mean = round(float(sizes[intact].mean())) if intact else 1
    lost = [
        Lost(shard, "no such file, or it cannot be opened", max(1, mean))
        for shard, state in zip(shards, files, strict=True)
        if state is None
    ]
    for shard, byte, reason, is_end in arrays["gaps"].tolist():
        count = max(1, mean - int(sizes[shard])) if is_end else 1
        if _REASONS[reason] == NO_END and (not intact or sizes[shard] >= mean):
            continue
        lost.append(Lost(f"{shards[shard]}:{byte}", _REASONS[reason].format(byte), count))
    return lost
