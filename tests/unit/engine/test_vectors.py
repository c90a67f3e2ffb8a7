"""Files of vectors: an index that is missing, damaged or another's page is one line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli.engine.vectors import (
    Page,
    check_output,
    npy_writer,
    page_of,
    read_vectors,
    write_page,
    write_skipped,
)
from vlkd_cli.errors import MissingPackageError, UserError

PAGE = Page(
    target="run",
    overrides=[],
    model={},
    tower="text",
    modality="text",
    digest="d",
    width=2,
    normalized=True,
    dtype="float32",
    precision="fp32",
    input={"path": "-", "column": None, "reader": {}},
    fingerprint="f",
    skipped=[],
    ids=["a", "b", "c"],
)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(3, 2))
    write_page(PAGE, page_of(path))
    return path


def test_an_array_written_in_blocks_is_what_numpy_reads():
    file = io.BytesIO()
    blocks = [np.ones((2, 3), dtype=np.float32), np.zeros((1, 3), dtype=np.float32)]
    with npy_writer(file, 3, (3,), "float16") as writer:
        for block in blocks:
            writer.write([], block)
    file.seek(0)
    found = np.load(file)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.concatenate(blocks))


def test_an_index_comes_back_mapped_with_its_page(index: Path):
    rows, page = read_vectors(index)
    assert isinstance(rows, np.memmap) and rows.shape == (3, 2)
    assert page == PAGE


def changed(index: Path, **values: object) -> None:
    content = json.loads(page_of(index).read_text())
    page_of(index).write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda index: index.unlink(), r"no such file. `vlkd encode TARGET INPUT .*` writes it"),
        (lambda index: index.write_bytes(b"x"), "cannot be read"),
        (lambda index: page_of(index).unlink(), "has no x.npy.json next to it"),
        (lambda index: page_of(index).write_text("{"), "x.npy.json is damaged"),
        (lambda index: page_of(index).write_text("[]"), "x.npy.json is damaged"),
        (lambda index: changed(index, more=1), "x.npy.json is damaged"),
        (lambda index: changed(index, ids=None), "x.npy.json is damaged"),
        (lambda index: changed(index, normalized="no"), "x.npy.json is damaged"),
        (lambda index: changed(index, input={"path": 1}), "x.npy.json is damaged"),
        (lambda index: changed(index, texts=["a"]), "x.npy.json is damaged"),
        (lambda index: page_of(index).write_text("[" * 100_000), "x.npy.json is damaged"),
        (lambda index: changed(index, format=9), "was written by vlkd"),
        (lambda index: changed(index, ids=["a"]), r"holds \[3, 2\] float32 values, and its page"),
        (lambda index: changed(index, dtype="float16"), "its page lists"),
    ],
)
def test_an_index_that_is_damaged_is_one_line(damage, line, index: Path):
    damage(index)
    with pytest.raises(UserError, match=line) as error:
        read_vectors(index)
    assert "\n" not in str(error.value)


def test_an_index_is_one_of_two_kinds_of_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"an index is a .npy or .parquet file"):
        read_vectors(tmp_path / "x.csv")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match="parquet"):
        check_output(str(tmp_path / "x.parquet"))


def test_an_array_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(UserError, match="which is a terminal. Redirect it"):
        check_output("-")


def test_a_list_of_a_former_call_goes_when_nothing_is_left_out(tmp_path: Path):
    path = tmp_path / "x.csv"
    write_skipped([("a,b", "bad")], path)  # type: ignore[list-item]
    assert path.read_text() == 'item,reason\n"a,b",bad\n'
    write_skipped([], path)
    assert not path.exists()
