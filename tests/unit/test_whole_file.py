from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from vlkd_cli.whole_file import whole_file


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "folder" / "page.txt"
    for text in ("first", "second"):
        with whole_file(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert os.listdir(path.parent) == ["page.txt"]


def test_the_former_file_stays_where_writing_fails(tmp_path: Path):
    path = tmp_path / "page.txt"
    path.write_text("former")
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "former"
    assert os.listdir(tmp_path) == ["page.txt"]


def test_a_pipe_is_written_and_stays_a_pipe(tmp_path: Path):
    path, read = tmp_path / "pipe", list[str]()
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    with whole_file(path) as partial:
        partial.write_text("content")
    reader.join(timeout=10)
    assert read == ["content"]
    assert path.is_fifo()
