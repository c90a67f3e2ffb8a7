"""`vlkd encode`: vectors of pictures or texts into a file."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from vlkd_cli import console
from vlkd_cli.data.batch import Skipped
from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed import runtime
from vlkd_cli.engine.encoder import Encoder, subject_for
from vlkd_cli.engine.items import (
    STANDARD,
    Input,
    Items,
    is_table,
    modalities_of,
    open_items,
    shown,
    standard_lines,
)
from vlkd_cli.engine.launching.interruption import Interrupted, Interruption
from vlkd_cli.engine.launching.launch import quieten_libraries, run_workers
from vlkd_cli.engine.launching.start import choose_placement
from vlkd_cli.engine.painted import find_painter, write_pictures
from vlkd_cli.engine.parquet_vectors import table_writer
from vlkd_cli.engine.target import open_target
from vlkd_cli.engine.vectors import (
    Page,
    Writer,
    check_output,
    content_of,
    npy_writer,
    page_of,
    skipped_of,
    write_page,
    write_skipped,
)
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.features.encode import normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.features.table import Rows, Table, projected_blocks, sample_table, text_table
from vlkd_cli.ranks import joins_running_job
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import ModalityName, Precision
from vlkd_cli.towers.outputs import HEAD

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Dtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class EncodeJob:
    """Arguments of an encoding worker; plain values only.

    Args:
        target, overrides, runs, trust: see `open_target`.
        source: path, column and reader keys of the input.
        output: a file, or `-`.
        tower: by name or modality; None: the one that fits the input.
        lines: of standard input, where that is the input.
        features: which output of the tower is written.
        pictures: a folder for what that output paints; None: nothing is painted.
    """

    target: str | None
    source: tuple[str, str | None, Mapping[str, object]]
    output: str
    tower: str | None = None
    overrides: tuple[str, ...] = ()
    runs: str = "runs"
    trust: bool = False
    normalize: bool = True
    dtype: Dtype = "float32"
    precision: Precision | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    lines: tuple[str, ...] | None = field(default=None, repr=False)
    features: str = HEAD
    pictures: str | None = None


def start_encoding(job: EncodeJob, *, gpus: int | None, cpu_workers: int | None) -> int:
    """Check what can be checked at once, then encode in one process or several.

    Returns:
        0, or the number of the signal that stopped it.

    Raises:
        UserError: something does not fit; the message names what to change.
    """
    quieten_libraries()
    check_output(job.output)
    modalities_of(Input(*job.source))
    placement = choose_placement(gpus, cpu_workers)
    several = placement.workers > 1 or joins_running_job()
    if several and STANDARD in (job.source[0], job.output):
        raise UserError("standard input and output belong to one process. Give files instead of -.")
    job = replace(job, device="cuda" if placement.device == "cuda" else "cpu")
    if job.source[0] == STANDARD:
        job = replace(job, lines=tuple(standard_lines()))
    return run_workers(encode, job, placement, _partial(job.output) / "logs")


def encode(job: EncodeJob) -> int:
    """Encode and write; 0, or the number of the signal that stopped it (finished features stay on
    disk)."""
    with Interruption().watched() as interruption:
        try:
            with interruption.dropping():
                _encode(job)
        except Interrupted:
            if runtime.is_main():
                hint = "" if job.output == STANDARD else " Run the same command to resume."
                console.note(f"Stopped.{hint}")
            return interruption.signal_number or signal.SIGINT
    return 0


class _Encoded(NamedTuple):
    """Features of the items that could be read.

    Args:
        rows: of the table, one for each such item.
        ids: of these items.
        lost: positions in the input of samples that could not be read.
        skipped: all that is left out, and why.
    """

    table: Table
    rows: Rows
    ids: Sequence[str]
    lost: Sequence[int]
    skipped: Sequence[Skipped]


def _encode(job: EncodeJob) -> None:
    opened = open_target(job.target, job.overrides, runs=Path(job.runs), trust=job.trust)
    subject = subject_for(opened, job.device, job.precision)
    source = Input(*job.source)
    encoder = _tower_for(Encoder(subject), source, job.tower).at_output(job.features)
    if encoder.positions is not None and Path(job.output).suffix == ".parquet":
        raise UserError(
            f"OUT {job.output}: '{job.features}' has a vector for each of {encoder.positions}"
            " positions, and a table holds one for each item. Write a .npy file."
        )
    painter = None
    if job.pictures is not None:
        painter = find_painter(opened.recipe, opened.towers, encoder.name, job.features)
    console.note(f"Encoding with tower '{encoder.name}' of {opened.described}")
    items = open_items(source, encoder.modality, job.lines)
    is_pipe = job.output == STANDARD
    subject = replace(encoder.subject, cache=None if is_pipe else _partial(job.output))
    encoded = _features(subject, encoder.modality, items)
    if is_pipe and encoded.skipped:
        first = encoded.skipped[0]
        raise DataError(
            f"{shown(source)}: {first.name}: {first.reason}, and rows on standard output have no"
            " ids. Repair it, or write to a file."
        )
    if not runtime.is_main():
        return
    page = Page(
        target=_again(job.target, opened.folder),
        overrides=list(job.overrides),
        model=subject.source_facts(),
        tower=encoder.name,
        modality=encoder.modality,
        digest=encoder.digest,
        width=encoder.width,
        normalized=job.normalize,
        dtype=job.dtype,
        precision=subject.precision,
        input=_input_page(source),
        fingerprint=items.fingerprint,
        skipped=list(encoded.lost),
        ids=list(encoded.ids),
        texts=list(items.texts or ()) if source.path == STANDARD else None,
        output=job.features,
        positions=encoder.positions,
    )
    with _writing(job.output), _writer(job.output, page) as writer:
        _write(subject, encoded, page, writer)
    if not is_pipe:
        _finish(Path(job.output), page, encoded.skipped)
    if painter is not None and job.pictures is not None:
        assert items.reader is not None
        folder = Path(job.pictures)
        write_pictures(painter, items.reader, encoded.rows.tolist(), encoded.ids, folder)
        console.note(f"Pictures: {folder}")


def _tower_for(encoder: Encoder, source: Input, tower: str | None) -> Encoder:
    """The tower that was asked for, else the first that takes what the input may hold."""
    if tower is not None:
        return encoder[tower]
    fitting = modalities_of(source)
    modalities = {encoder[name].modality for name in encoder.towers}
    if is_table(source.path) and len(modalities) > 1:
        raise UserError(
            f"{source.path} may hold texts or paths. Choose with --tower NAME. Towers:"
            f" {', '.join(encoder.towers)}."
        )
    for modality in fitting:
        if modality in modalities:
            return encoder[modality]
    raise UserError(
        f"{shown(source)} holds {' or '.join(FACTS[each].plural for each in fitting)}, and no tower"
        f" takes these. Towers: {', '.join(encoder.towers)}."
    )


def _features(subject: Subject, modality: ModalityName, items: Items) -> _Encoded:
    if items.texts is not None:
        table = text_table(subject, items.texts, whole=True)
        return _Encoded(table, table.wanted, items.ids, (), items.skipped)
    assert items.reader is not None
    table = sample_table(subject, modality, items.reader, skip=True)
    lost = np.flatnonzero(table.store.broken).tolist()
    reasons = _reasons(table.tower, items.reader, lost)
    skipped = [
        Skipped(items.ids[row], reasons.get(items.reader.name(row), "could not be read"))
        for row in lost
    ]
    if len(lost) == len(items.ids):
        raise DataError(
            f"none of {len(lost)} {FACTS[modality].plural} can be read; the first:"
            f" {skipped[0].name}: {skipped[0].reason.rstrip('.')}."
        )
    rows = np.flatnonzero(~table.store.broken)
    return _Encoded(table, rows, [items.ids[row] for row in rows.tolist()], lost, skipped)


def _reasons(tower: Tower, reader: Reader, rows: Sequence[int]) -> dict[str, str]:
    """Why samples cannot be read, by their names; they are tried again, since a table notes no
    reasons."""
    views = {tower.name: MODALITIES[tower.modality].view(tower.input, None, None)}
    found = in_order(reader, views, rows, batch_size=64, skip=True)
    return {skipped.name: skipped.reason for batch in found for skipped in batch.skipped}


def _write(subject: Subject, encoded: _Encoded, page: Page, writer: Writer) -> None:
    start = 0
    for block in projected_blocks(subject, encoded.table, encoded.rows):
        vectors = block.unflatten(1, page.shape)
        rows = (normalize(vectors) if page.normalized else vectors).numpy()
        largest = float(np.finfo(page.dtype).max)
        if page.dtype != "float32" and np.abs(rows).max(initial=0) > largest:
            raise DataError(
                f"vectors reach {np.abs(rows).max():.3g}, and {page.dtype} ends at {largest:.0f}."
                " Leave out --raw or --dtype."
            )
        writer.write(page.ids[start : start + len(rows)], rows)
        start += len(rows)


@contextmanager
def _writer(output: str, page: Page) -> Iterator[Writer]:
    """A writer of standard output, or of a file that appears when it is whole."""
    rows, dtype = len(page.ids), page.dtype
    with ExitStack() as stack:
        if output == STANDARD:
            yield stack.enter_context(npy_writer(sys.stdout.buffer, rows, page.shape, dtype))
            return
        path, partial = Path(output), _partial(output) / "vectors"
        if path.suffix == ".npy":
            file = stack.enter_context(partial.open("wb"))
            yield stack.enter_context(npy_writer(file, rows, page.shape, dtype))
        else:
            yield stack.enter_context(table_writer(partial, content_of(page)))
    if path.suffix == ".npy":
        page_of(path).unlink(missing_ok=True)  # that of the former rows
    os.replace(partial, path)


def _finish(path: Path, page: Page, skipped: Sequence[Skipped]) -> None:
    """Write the files that belong to the index, remove its intermediate files, and report what was
    written."""
    with _writing(str(path)):
        if path.suffix == ".npy":
            write_page(page, page_of(path))
        write_skipped(skipped, skipped_of(path))
    shutil.rmtree(_partial(str(path)), ignore_errors=True)
    sizes = " x ".join(map(str, page.shape))
    console.say(f"Vectors: {path} ({len(page.ids):,} x {sizes}, {page.dtype})")
    if skipped:
        first = skipped[0]
        console.warn(
            f"{len(skipped):,} of {len(page.ids) + len(skipped):,} items could not be encoded, e.g."
            f" {first.name}: {first.reason.rstrip('.')}. See {skipped_of(path)}."
        )


@contextmanager
def _writing(output: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"OUT {output} cannot be written: {error.strerror or error}. Free space or name another"
            " file."
        ) from error


def _partial(output: str) -> Path:
    """Where features are cached until the file is whole."""
    return Path(f"{output}.partial")


def _input_page(source: Input) -> dict[str, object]:
    path = source.path if source.path == STANDARD else str(Path(source.path).absolute())
    return {"path": path, "column": source.column, "reader": dict(source.reader)}


def _again(target: str | None, folder: Path | None) -> str:
    """The target as the next command can name it from any folder; empty: towers of --set."""
    if target is not None and Path(target).exists():
        return str(Path(target).absolute())
    return str(folder.absolute()) if folder is not None else target or ""
