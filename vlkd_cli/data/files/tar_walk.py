"""The members of a tar file, found from its headers alone, also where parts of it are damaged.

Python's `tarfile` ends at the first header that it cannot read; here the walk continues at the next
one, so that a damaged block costs one sample and not the rest of a shard.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 512
_SEARCH_BLOCKS = 1 << 11
_LONGEST_EXTENSION_BYTES = 1 << 20
_NAME_SEARCH_BLOCKS = 64
# Programs fill up the last of their records, which have 20 blocks.
LONGEST_END = 2 * 20 * BLOCK
_REGULAR = b"0\x007"
_WITHOUT_CONTENT = b"123456"

NO_HEADER = "no member begins at byte {}"
CUT_OFF = "unexpected end of data at byte {}"
NO_END = "no regular end of the archive at byte {}"


class Member(NamedTuple):
    """A regular file: its path, the block in which its content begins, and its size in bytes."""

    path: str
    block: int
    size: int


class Gap(NamedTuple):
    """A part of the file that cannot be read.

    Args:
        byte: where it begins.
        reason: format string with a field for the byte.
        is_end: whether nothing follows it.
    """

    byte: int
    reason: str
    is_end: bool = False


class End(NamedTuple):
    """The end of the file.

    Args:
        byte: where the members end.
        is_marked: whether zeros mark it as the end of the archive, too.
        is_usual: whether these are not more than programs write; a file whose room was reserved and
            never filled, or whose last blocks were lost, ends in many.
    """

    byte: int
    is_marked: bool
    is_usual: bool


def walk(file: int, size: int) -> Iterator[Member | Gap | End]:
    """Every regular file in a tar file, in order; where a header is damaged, a gap, and what
    follows it.

    Args:
        file: handle of an open file.
        size: of the file in bytes.
    """
    block, long_path, long_size = 0, None, None
    while header := os.pread(file, BLOCK, block * BLOCK):
        content, problem = block + 1, ""
        if not is_header(header):
            following = _after_zeros(file, size, block, header)
            if following is None:
                usual = size - block * BLOCK <= LONGEST_END or any(_last(file, size))
                yield End(block * BLOCK, is_marked=True, is_usual=usual)
                return
            if following > block and is_header(os.pread(file, BLOCK, following * BLOCK)):
                block = following  # another archive was appended
                continue
            problem, content = NO_HEADER if len(header) == BLOCK else CUT_OFF, following
        kind = header[156:157]
        length = 0 if problem or kind in _WITHOUT_CONTENT else long_size or _number(header[124:136])
        if content * BLOCK + length > size:
            problem = CUT_OFF
        if problem:
            found = _next_header(file, content)
            yield Gap(block * BLOCK, problem, found is None)
            if found is None:
                return
            block, long_path, long_size = found, None, None
            continue
        if kind in b"xXLK":
            text = os.pread(file, min(length, _LONGEST_EXTENSION_BYTES), content * BLOCK)
            own_path, own_size = _extension(kind, text)
            long_path, long_size = own_path or long_path, own_size or long_size
        elif kind != b"g":
            path = long_path or _path(header)
            if kind in _REGULAR and not (kind == b"\0" and path.endswith("/")):
                yield Member(path, content, length)
            long_path, long_size = None, None
        block = content + -(-length // BLOCK)
    yield End(size, is_marked=False, is_usual=False)


def is_header(block: bytes) -> bool:
    """Whether a block has the checksum of a tar header."""
    if len(block) < BLOCK:
        return False
    try:
        expected = int(block[148:156].partition(b"\0")[0].strip(), 8)
    except ValueError:
        return False
    # The first half of adler32 is 1 + the sum of all bytes, modulo 65521.
    if zlib.adler32(block) & 0xFFFF == (expected - 255 + sum(block[148:156])) % 65521:
        return True
    # Some old programs added up signed bytes.
    signed: int = 256 + sum(struct.unpack("148b8x356b", block))
    return expected == signed


def path_before(file: int, block: int) -> str:
    """The path of the member whose content begins in a block.

    Raises:
        ValueError: no header lies before it.
    """
    header = os.pread(file, BLOCK, (block - 1) * BLOCK)
    if block < 1 or not is_header(header):
        raise ValueError("no header lies before it")
    path, last = _path(header), block - 1
    for distance in range(2, _NAME_SEARCH_BLOCKS):
        start = last - distance
        if start < 0:
            break
        header = os.pread(file, BLOCK, start * BLOCK)
        if not is_header(header):
            continue
        kind, length = header[156:157], _number(header[124:136])
        if start + 1 + -(-length // BLOCK) != last:
            continue
        if kind not in b"xXL":
            break
        text = os.pread(file, min(length, _LONGEST_EXTENSION_BYTES), (start + 1) * BLOCK)
        return _extension(kind, text)[0] or path
    return path


def _last(file: int, size: int) -> bytes:
    return os.pread(file, BLOCK, max(0, size - BLOCK))


def _after_zeros(file: int, size: int, block: int, header: bytes) -> int | None:
    """The block in which the archive may continue; None: it ends here."""
    if len(header) < BLOCK or any(header):
        return block
    for start in range(block * BLOCK, size, _SEARCH_BLOCKS * BLOCK):
        piece = np.frombuffer(os.pread(file, _SEARCH_BLOCKS * BLOCK, start), dtype=np.uint8)
        if piece.any():
            following = (start + int((piece != 0).argmax())) // BLOCK
            # Two blocks of zeros are the end; what other programs leave behind it is not ours.
            ends = following >= block + 2 and _next_header(file, following) is None
            return None if ends else following
    return None


def _next_header(file: int, block: int) -> int | None:
    """The next block with the magic bytes and the checksum of a header."""
    while piece := os.pread(file, _SEARCH_BLOCKS * BLOCK, block * BLOCK):
        count = len(piece) // BLOCK
        marks = np.frombuffer(piece, dtype=np.uint8, count=count * BLOCK).reshape(count, BLOCK)
        says = (marks[:, 257:262] == np.frombuffer(b"ustar", dtype=np.uint8)).all(axis=1)
        for number in np.flatnonzero(says).tolist():
            if is_header(piece[number * BLOCK : (number + 1) * BLOCK]):
                return block + int(number)
        block += _SEARCH_BLOCKS
    return None


def _number(field: bytes) -> int:
    """A size, in octal digits or, with the first bit set, as a binary number."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return max(0, int(field.partition(b"\0")[0].strip() or b"0", 8))
    except ValueError:
        return 1 << 62  # beyond any file


def _path(header: bytes) -> str:
    path = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and (prefix := header[345:500].partition(b"\0")[0]):
        path = prefix + b"/" + path
    return path.decode("utf-8", "surrogateescape")


def _extension(kind: bytes, text: bytes) -> tuple[str | None, int | None]:
    """Path and size that a member of type x (pax) or L (GNU) gives to the next one."""
    if kind == b"L":
        return text.partition(b"\0")[0].decode("utf-8", "surrogateescape"), None
    path, size = None, None
    while kind in b"xX" and (digits := text.partition(b" ")[0]).isdigit() and int(digits):
        key, _, value = text[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        text = text[int(digits) :]
    return path, size
