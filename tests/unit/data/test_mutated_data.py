"""Damaged files of every kind end in a reading, in a broken sample or in one line: never in a
traceback."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_sets import READER_DATA, encoded, photo, write_tar
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.images.decode import decode
from vlkd_cli.data.images.files import FORMATS
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.errors import UserError

PIECES = [b'"', b"\n", b"\0", b",", b"[", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"null", b"9" * 400]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """The content with one to five changes."""
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del data[at : at + draw.randrange(1, 50)]
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at : at + 8] = b"\xff" * 8
        elif kind == 4:
            data[at:at] = draw.choice([*PIECES, b'{"a":' * 2000])
        else:
            data[at : at + 32] = bytes(len(data[at : at + 32]))
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_images_are_read_or_broken_in_a_line(kind: str) -> None:
    whole = encoded(photo(3), kind)
    outcomes = Counter[str]()
    for number in range(40):
        try:
            pixels = decode(mutated(whole, random.Random(f"{kind} {number}")))
            assert pixels.ndim == 3 and pixels.shape[2] == 3
            outcomes["read"] += 1
        except Broken as broken:
            assert str(broken) and "\n" not in str(broken)
            outcomes["broken"] += 1
    assert outcomes.total() == 40 and outcomes["broken"]


def json_shard(folder: Path) -> dict[str, Any]:
    members: dict[str, bytes] = {}
    for number in range(5):
        members[f"{number}.jpg"] = encoded(photo(number))
        members[f"{number}.json"] = b'{"caption": "a", "more": ["b", "c"]}'
        members[f"{number}.cls"] = b"%d" % number
    path = write_tar(folder / "s.tar", members)
    keys = {"caption": "json", "caption_key": "caption", "texts": {"more": "more"}}
    return {"reader": "webdataset", "path": str(path), **keys}


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    name: build for name, build in READER_DATA.items() if name != "shapes"
} | {"json_shard": json_shard}


def read_all(reader: Reader) -> None:
    """Everything that is asked of a reader; broken samples say why in a line."""
    reader.fingerprint()
    rows = np.arange(len(reader))
    reader.labels_of(rows), reader.targets_of(rows), reader.caption_starts(rows + 1)
    for index in range(min(len(reader), 20)):
        assert reader.name(index)
        for read in (lambda k: decode(reader.image(k)), lambda k: checked_texts(reader, k)):
            try:
                read(index)
            except Broken as broken:
                assert str(broken) and "\n" not in str(broken)


def checked_texts(reader: Reader, index: int) -> None:
    texts = reader.captions(index)
    assert len(texts) == reader.caption_start(index + 1) - reader.caption_start(index)
    assert all(text.encode() is not None for text in texts)  # no lone surrogates


@pytest.mark.parametrize("name", CASES)
def test_damaged_files_of_a_data_set_are_read_or_refused_in_a_line(
    name: str, tmp_path: Path
) -> None:
    section = CASES[name](tmp_path)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix != ".jpg"] or files[:1]
    outcomes = Counter[str]()
    for number in range(25):
        draw = random.Random(f"{name} {number}")
        path = draw.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutated(whole, draw))
        try:
            reader = open_reader(dict(section))
            assert isinstance(reader, Reader)
            read_all(reader)
            outcomes["read"] += 1
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
        finally:
            path.write_bytes(whole)
    assert outcomes.total() == 25
