"""The training data of a run: the samples that it leaves out, its captions, and whether it has what
the distillers need."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.composition.composition import Composition
from vlkd_cli.data.batch import Broken
from vlkd_cli.data.loading.loader import Loader
from vlkd_cli.data.readers.excluded import excluded_names, excluding
from vlkd_cli.data.readers.open import open_reader
from vlkd_cli.data.readers.reader import Reader, StreamReader
from vlkd_cli.distillers.distiller import DataFacts, Distiller
from vlkd_cli.distributed import runtime
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.recipe.objectives import listed
from vlkd_cli.recipe.schema import DataSpec

EXCLUDED = "excluded.txt"
"""In a checkpoint's files: the names of the samples that the run leaves out."""
STREAM_PARTS = "stream_parts.txt"
"""In a checkpoint's files: the parts that its stream is read in."""


def excluded_samples(data: DataSpec, resumed: Checkpoint | None) -> list[str]:
    """The samples that the run leaves out; a resumed run leaves out the samples it began with,
    even if the file has changed since."""
    if data.exclude is None:
        return []
    if resumed is not None:
        return resumed.files[EXCLUDED].decode("utf-8", "surrogateescape").split("\n")
    return excluded_names(data.exclude)


def stream_parts(reader: Reader | StreamReader, resumed: Checkpoint | None) -> int | None:
    """The parts that a stream is read in: as many as processes when the run began. None for data
    that is read by position."""
    if isinstance(reader, Reader):
        return None
    if resumed is None:
        return runtime.world_size()
    return int(resumed.files.get(STREAM_PARTS, resumed.world_size))


def files_of(excluded: Sequence[str], parts: int | None) -> dict[str, bytes]:
    """What a checkpoint stores of the samples that are left out, and of a stream."""
    files = {}
    if excluded:
        files[EXCLUDED] = "\n".join(excluded).encode("utf-8", "surrogateescape")
    if parts is not None:
        files[STREAM_PARTS] = str(parts).encode()
    return files


def open_data(data: DataSpec, excluded: Sequence[str]) -> Reader | StreamReader:
    """The reader of the training data, without these samples."""
    reader = open_reader(data)
    return excluding(reader, excluded) if data.exclude is not None else reader


def captions_of(reader: Reader | StreamReader) -> Callable[[], Iterable[str]] | None:
    """All captions of the data, one after another; for training a tokenizer. Samples without any
    are the loader's to count."""
    if not isinstance(reader, Reader):
        return None

    def captions() -> Iterator[str]:
        for index in range(len(reader)):
            with contextlib.suppress(Broken):
                yield from reader.captions(index)

    return captions


def check_data(
    composition: Composition, reader: Reader | StreamReader, loader: Loader, global_batch: int
) -> None:
    """Refuse data that a distiller cannot be trained on.

    Raises:
        UserError: a batch is too small, labels are missing, or what a distiller itself refuses.
    """
    distillers = [objective.distiller for objective in composition.objectives]
    for objective in composition.objectives:
        if global_batch < objective.distiller.minimum_batch:
            raise RecipeError(
                f"distiller '{objective.name}' needs at least {objective.distiller.minimum_batch}"
                f" samples a step over all processes and gets {global_batch}. Raise"
                " train.batch_size."
            )
    labels = None
    if isinstance(reader, Reader) and any("labels" in each.wants for each in distillers):
        labels = reader.labels_of(np.arange(len(reader)))
    highest = None if labels is None else int(labels.max(initial=-1))
    facts = DataFacts(
        loader.batches_per_epoch * global_batch,
        num_rows=len(reader) if isinstance(reader, Reader) else None,
        highest_label=highest,
        largest_target=_largest_target(reader, distillers),
    )
    for objective in composition.objectives:
        outputs, contract = listed(objective.arrow.calls[0].student), objective.contract
        if highest == -1 and contract is not None and contract.needs_labels(len(outputs)):
            raise DataError(
                f"distiller '{objective.name}' needs labels, and the data has none. Read labeled"
                " data."
            )
        learns_classes = next(objective.distiller.parameters(), None) is not None
        if labels is None or contract is None or learns_classes:
            continue
        if contract.compares_labels(len(outputs)) and not _has_pair(labels):
            raise DataError(
                f"distiller '{objective.name}' compares samples of one class, and no class of the"
                " data has two. Check data.label, or list two outputs of a sample."
            )
    for distiller in distillers:
        distiller.check_data(facts)


def _has_pair(labels: np.ndarray) -> bool:
    """Whether two samples have one label."""
    known = labels[labels >= 0]
    return len(np.unique(known)) < len(known)


def _largest_target(reader: Reader | StreamReader, distillers: Sequence[Distiller]) -> float | None:
    """The largest target of the data, where a distiller needs targets and the reader knows
    them."""
    if not isinstance(reader, Reader) or not any("targets" in each.wants for each in distillers):
        return None
    targets = reader.targets_of(np.arange(len(reader)))
    return float(np.nanmax(targets)) if np.isfinite(targets).any() else None
