"""Tables of features, computed once: a row for each image of a data set, or for each of some texts.

They are keyed by what determines them: the tower's digest, the data's fingerprint, the image
transform and the precision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.collectives import gather_objects, gather_ragged
from vlkd_cli.distributed.runtime import barrier, local_rank, rank, world_size
from vlkd_cli.errors import DataError, UserError
from vlkd_cli.features.forward import (
    PROJECTED_AT_ONCE,
    Stored,
    evaluating,
    features_of,
    insist_on_numbers,
    project,
    stored_output,
)
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Rows = NDArray[np.int64]

# Batches that one rank computes between two exchanges: what an interruption loses, and what is
# sorted by length together.
BATCHES_PER_WINDOW = 16


class Table(NamedTuple):
    """Features of a tower's backbone, or of a head that reads more than its feature, and which of
    them were asked for.

    Args:
        key: what determines the features.
        store: a row for each image, or for each different text.
        wanted: the rows asked for, in order.
        output: which output the rows are.
    """

    tower: Tower
    key: str
    store: FeatureStore
    wanted: Rows
    output: Stored = "backbone"


def sample_table(
    subject: Subject,
    modality: ModalityName,
    reader: Reader,
    indices: Sequence[int] | None = None,
    *,
    point: Stored = "head",
    skip: bool = False,
) -> Table:
    """The features of the samples of a data set, complete on every rank.

    Args:
        modality: one that is read through views, e.g. image.
        indices: see `embed_images`.
        point: the output that is wanted of them.
        skip: mark the rows of samples that cannot be read (`FeatureStore.broken`) instead of
            raising; windows of batches are then computed whole, so that after an interruption the
            numbers are those of a pass without one.

    Raises:
        DataError: see `embed_images`.
    """
    if not isinstance(reader, Reader):
        raise DataError(
            "this data can only be read as a stream; evaluation needs random access to the samples."
            " Use local shards or files."
        )
    tower = needed(subject, modality)
    expected = tower.input
    output = stored_output(tower, point)
    own = (
        _digest(subject, tower, output),
        subject.image_fingerprint(reader),
        repr(tuple(expected)),
        subject.precision,
    )
    key = table_key(*own, *(["skip"] if skip else []))

    def compute(batches: list[Rows]) -> Iterator[_Computed]:
        positions = np.concatenate(batches) if batches else np.zeros(0, dtype=np.int64)
        views = {tower.name: MODALITIES[modality].view(expected, None, None)}
        size = subject.batch_size
        found = in_order(
            reader, views, positions.tolist(), batch_size=size, workers=subject.workers, skip=skip
        )
        for rows, batch in zip(split_rows(positions, size), found, strict=True):
            read = torch.isin(torch.from_numpy(rows), batch.indices)
            values = torch.zeros(len(rows), _width(tower, output))
            if read.any():
                inputs = batch.to(subject.device).inputs[tower.name]
                values[read] = features_of(subject, tower, inputs, output)
            yield _Computed(values, ~read)

    wanted = np.arange(len(reader)) if indices is None else np.asarray(indices, dtype=np.int64)
    store = _open_store(subject, _width(tower, output), key, len(reader))
    _fill(subject, tower, store, wanted, compute, _in_order_batches, whole=skip)
    return Table(tower, key, store, wanted, output)


def text_table(
    subject: Subject, texts: Sequence[str], *, point: Stored = "head", whole: bool = False
) -> Table:
    """The features of texts, complete on every rank; a text that occurs twice is one row.

    Args:
        point: the output that is wanted of them.
        whole: compute windows of batches whole, see `sample_table`.
    """
    tower = needed(subject, "text")
    rows: dict[str, int] = {}
    wanted = np.fromiter(
        (rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts)
    )
    unique = list(rows)
    fingerprint = hashlib.sha256()
    for text in unique:
        encoded = text.encode("utf-8", "surrogatepass")
        fingerprint.update(f"{len(encoded)}:".encode() + encoded)
    output = stored_output(tower, point)
    digest = _digest(subject, tower, output)
    own = (digest, fingerprint.hexdigest(), "text", subject.precision)
    key = table_key(*own, *(["whole"] if whole else []))
    lengths = np.fromiter((len(text) for text in unique), dtype=np.int64, count=len(unique))

    def by_length(missing: Rows, batch_size: int) -> list[list[Rows]]:
        # Texts of similar length share a batch, so that little of it is padding; the longest come
        # first, so that memory runs out at once or never.
        ordered = missing[np.argsort(-lengths[missing], kind="stable")]
        return _in_order_batches(ordered, batch_size)

    def compute(batches: list[Rows]) -> Iterator[_Computed]:
        for batch in batches:
            tokens = tower.input([unique[row] for row in batch])
            inputs = {name: tensor.to(subject.device) for name, tensor in tokens.items()}
            values = features_of(subject, tower, inputs, output)
            yield _Computed(values, torch.zeros(len(values), dtype=torch.bool))

    store = _open_store(subject, _width(tower, output), key, len(unique))
    _fill(subject, tower, store, wanted, compute, by_length, whole=whole)
    return Table(tower, key, store, wanted, output)


def projected_blocks(subject: Subject, table: Table, wanted: Rows) -> Iterator[Tensor]:
    """What the tower's head makes of these rows of a table, `[n, width]` float32 on the CPU, a
    block of rows at a time: what `embed_images` and `embed_texts` give as a whole."""
    features = table.store.table()
    for start in range(0, len(wanted), PROJECTED_AT_ONCE):
        block = torch.from_numpy(features[wanted[start : start + PROJECTED_AT_ONCE]])
        tower = table.tower
        is_ready = table.output == "head" or isinstance(tower.head, nn.Identity)
        yield block if is_ready else project(subject, tower, block)


def needed(subject: Subject, modality: ModalityName) -> Tower:
    """The tower of a modality.

    Raises:
        UserError: there is none.
    """
    tower = subject.tower(modality)
    if tower is None:
        raise UserError(
            f"this evaluation needs a tower for {FACTS[modality].plural}, but the recipe has none."
        )
    return tower


def table_key(*parts: str) -> str:
    """What a table of features is called that these determine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def split_rows(rows: Rows, size: int) -> list[Rows]:
    """The rows in pieces of this size; the last may be shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _Computed(NamedTuple):
    """Features of a batch `[n, width]`, and which rows are of inputs that cannot be read."""

    values: Tensor
    broken: Tensor


def _digest(subject: Subject, tower: Tower, output: Stored) -> str:
    return subject.digest(tower) if output == "backbone" else subject.weights_digest(tower)


def _width(tower: Tower, output: Stored) -> int:
    return tower.feature_width if output == "backbone" else tower.width


def _open_store(subject: Subject, width: int, key: str, rows: int) -> FeatureStore:
    store = subject.tables.stores.get(key)
    if store is None:
        # Files of another shape belong to another version of the tower's builder; the width is part
        # of the name.
        folder = (
            None if subject.cache is None else Path(subject.cache) / "features" / f"{key}-{width}"
        )
        store = _open_together(folder, rows, width)
        subject.tables.stores[key] = store
    return store


def _open_together(folder: Path | None, rows: int, width: int) -> FeatureStore:
    """The table on every rank; the first rank of each machine makes the files before the others
    look."""
    if folder is None or world_size() == 1:
        return FeatureStore(folder, rows, width)
    store, problem = None, ""
    if local_rank() == 0:
        try:
            store = FeatureStore(folder, rows, width)
        except UserError as error:
            problem = str(error)
    _fail_together(problem)
    return store or FeatureStore(folder, rows, width, verify=False)


def _fill(
    subject: Subject,
    tower: Tower,
    store: FeatureStore,
    wanted: Rows,
    compute: Callable[[list[Rows]], Iterator[_Computed]],
    plan: Callable[[Rows, int], list[list[Rows]]],
    *,
    whole: bool,
) -> None:
    """Compute the wanted rows that are still missing: windows of batches, dealt to the ranks in
    turn.

    The batches depend on what is missing only, never on the number of ranks, and so do the numbers.

    Args:
        whole: the windows are those of all wanted rows, and one that misses a row is computed
            again; so the batches do not even depend on what is missing.
    """
    done = store.done
    if world_size() > 1:
        done = np.minimum.reduce(
            gather_objects(done)
        )  # machines without a common disk may have stored different rows
    missing = np.unique(wanted[done[wanted] == 0])
    if not len(missing):
        return
    windows = plan(missing, subject.batch_size)
    if whole:
        windows = plan(np.unique(wanted), subject.batch_size)
        windows = [window for window in windows if not done[np.concatenate(window)].all()]
    own = windows[rank() :: world_size()]
    with evaluating(tower):
        stream = compute([batch for window in own for batch in window])
        for turn in range(-(-len(windows) // world_size())):
            window = own[turn] if turn < len(own) else []
            problem, indices = "", np.zeros(0, dtype=np.int64)
            values, broken = torch.zeros(0, store.width), torch.zeros(0, dtype=torch.bool)
            try:
                if window:
                    found = [next(stream) for _ in window]
                    values = torch.cat([each.values for each in found])
                    broken = torch.cat([each.broken for each in found])
                    indices = np.concatenate(window)
                    insist_on_numbers(tower, values)
            except UserError as error:
                problem = str(error)
            _fail_together(problem)
            if world_size() > 1:
                indices = gather_ragged(torch.from_numpy(indices).to(subject.device)).cpu().numpy()
                values = gather_ragged(values.to(subject.device))
                broken = gather_ragged(broken.to(subject.device, torch.uint8)).bool().cpu()
            try:
                # Ranks of one machine share its files: the first one writes.
                if store.folder is None or local_rank() == 0 or world_size() == 1:
                    store.write(indices, values.cpu().numpy(), broken.numpy())
                else:
                    store.mark(indices, broken.numpy())
            except UserError as error:
                problem = str(error)
            _fail_together(problem)
    barrier()


def _fail_together(problem: str) -> None:
    """Raise on every rank what any rank met, so that none waits for another that has gone."""
    problems = [problem] if world_size() == 1 else gather_objects(problem)
    for each in problems:
        if each:
            raise DataError(each)


def _in_order_batches(missing: Rows, batch_size: int) -> list[list[Rows]]:
    return [
        split_rows(window, batch_size)
        for window in split_rows(missing, batch_size * BATCHES_PER_WINDOW)
    ]
