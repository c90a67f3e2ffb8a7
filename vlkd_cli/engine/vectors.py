"""Files of vectors: a `.npy` array with a page next to it that describes its rows, or a parquet
table that holds both."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from pydantic import TypeAdapter

import vlkd_cli
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.catalog import did_you_mean_path
from vlkd_cli.data.batch import Skipped
from vlkd_cli.data.files.texts import read_json
from vlkd_cli.engine.items import Input
from vlkd_cli.engine.parquet_vectors import read_table, require_pyarrow
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.numerics.npy import load_npy
from vlkd_cli.recipe.types import ModalityName
from vlkd_cli.whole_file import whole_file

FORMAT = 1
KINDS = (".npy", ".parquet")


class Page(NamedTuple):
    """What the rows of a file of vectors are.

    Args:
        target: what the model was called in the command; `overrides` changed its recipe.
        model: run, checkpoint, step and averaging of the weights; nulls where nothing was trained.
        tower: its name; `modality` and `digest` are its own, `width` is that of a vector.
        normalized: whether rows have unit length.
        input: where the items were, see `items.Input`; `fingerprint` detects changes.
        skipped: positions of pictures in the input that have no row.
        ids: of the rows.
        texts: of the rows, where they came through standard input.
        output: of the tower.
        positions: vectors of an item, one for each of its positions; None: a single one.
    """

    target: str
    overrides: list[str]
    model: dict[str, object]
    tower: str
    modality: ModalityName
    digest: str
    width: int
    normalized: bool
    dtype: str
    precision: str
    input: dict[str, Any]
    fingerprint: str
    skipped: list[int]
    ids: list[str]
    texts: list[str] | None = None
    output: str = "head"
    positions: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an item's values."""
        return (self.width,) if self.positions is None else (self.positions, self.width)


class Writer(Protocol):
    """Takes blocks of rows in order."""

    def write(self, ids: Sequence[str], block: np.ndarray) -> None: ...


def page_of(path: Path) -> Path:
    """Where the page of a file of vectors is: next to an array, within a table."""
    return path if path.suffix == ".parquet" else path.with_name(f"{path.name}.json")


def skipped_of(path: Path) -> Path:
    """Where the list of items without a row is."""
    return path.with_name(f"{path.name}.skipped.csv")


def check_output(output: str) -> None:
    """Whether vectors can be written there.

    Raises:
        UserError: the name is not one of a kind of file, or its folder does not exist.
        MissingPackageError: pyarrow is needed and not installed.
    """
    if output == "-":
        if sys.stdout.isatty():
            raise UserError(
                "OUT - writes a .npy array to standard output, which is a terminal. Redirect it."
            )
        return
    path = Path(output)
    if path.suffix not in KINDS:
        raise UserError(f"OUT {path}: vectors are written to {' or '.join(KINDS)} files, or to -.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "it is a folder" if path.is_dir() else f"no folder {path.absolute().parent}"
        raise UserError(f"OUT {path}: {what}. Name a file in a folder that exists.")
    if path.suffix == ".parquet":
        require_pyarrow("OUT .parquet")


@contextmanager
def npy_writer(file: IO[bytes], rows: int, shape: tuple[int, ...], dtype: str) -> Iterator[Writer]:
    """Writes an array of so many rows of a shape to a file or a pipe."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (rows, *shape),
    }
    np.lib.format.write_array_header_1_0(file, header)

    class Npy:
        def write(self, ids: Sequence[str], block: np.ndarray) -> None:
            file.write(np.ascontiguousarray(block, dtype=dtype).tobytes())

    yield Npy()
    file.flush()


def content_of(page: Page) -> dict[str, Any]:
    """A page as JSON has it."""
    return {"format": FORMAT, "version": vlkd_cli.__version__, **page._asdict()}


def write_page(page: Page, path: Path) -> None:
    """Write what the rows are, at once or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content_of(page), indent=1) + "\n", encoding="utf-8")


def write_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """List the items that have no row, or remove the list where there are none."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with (
        whole_file(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([("item", "reason"), *skipped])


def read_vectors(path: Path) -> tuple[np.ndarray, Page]:
    """The vectors of a file, `[N, width]`, and its page; a `.npy` array is mapped into memory.

    Raises:
        DataError: one of the two is missing, damaged, or of another version, or they do not fit.
        MissingPackageError: pyarrow is needed and not installed.
    """
    if path.suffix not in KINDS:
        raise DataError(
            f"INDEX {path}: an index is a {' or '.join(KINDS)} file that `vlkd encode` wrote."
        )
    again = f"Write it again: vlkd encode TARGET INPUT {path}"
    is_table = path.suffix == ".parquet"
    try:
        rows: np.ndarray
        rows, content = read_table(path) if is_table else (load_npy(path, mmap_mode="r"), None)
    except FileNotFoundError:
        # The page without its vectors is not what was meant.
        guess = "" if page_of(path).is_file() else did_you_mean_path(path)
        raise DataError(
            f"INDEX {path}: no such file.{guess} `vlkd encode TARGET INPUT {path}` writes it."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"INDEX {path} cannot be read ({first_line(error)}). {again}.") from None
    try:
        if content is None:
            content = read_json(page_of(path))
        found, version = content.pop("format"), content.pop("version")
        page = TypeAdapter(Page).validate_python(content, strict=True)
        TypeAdapter(Input).validate_python(page.input, strict=True)
        fits = rows.shape == (len(page.ids), *page.shape) and str(rows.dtype) == page.dtype
        if page.texts is not None and len(page.texts) != len(page.ids):
            raise ValueError("another number of texts than ids")
    except FileNotFoundError:
        raise DataError(f"INDEX {path} has no {page_of(path).name} next to it. {again}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{page_of(path)} is damaged. {again}.") from None
    if found != FORMAT:
        raise DataError(f"{page_of(path)} was written by vlkd {version}. {again}.")
    if not fits:
        raise DataError(
            f"INDEX {path} holds {list(rows.shape)} {rows.dtype} values, and its page lists"
            f" {[len(page.ids), *page.shape]} {page.dtype}. {again}."
        )
    return rows, page
