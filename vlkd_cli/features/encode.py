"""Embed a data set once; every suite reuses it.

What is kept are the features of the backbone (with its pooler), keyed by what determines them: the
tower's digest, the data's fingerprint, the image transform and the precision. The projection is
applied to kept features: heads are cheap, backbones are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlkd_cli.data.loading.loader import in_order
from vlkd_cli.data.modality import MODALITIES
from vlkd_cli.data.readers.reader import Reader
from vlkd_cli.distributed.collectives import gather_objects, gather_ragged
from vlkd_cli.distributed.runtime import barrier, local_rank, rank, world_size
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.features.store import FeatureStore
from vlkd_cli.features.subject import Subject
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.modality import FACTS
from vlkd_cli.recipe.types import ModalityName

if TYPE_CHECKING:
    from vlkd_cli.towers.tower import Tower

Point = Literal["projected", "backbone"]
Ensemble = Literal["normalise", "raw_mean"]
Rows = NDArray[np.int64]

# Batches that one rank computes between two exchanges: what an interruption loses, and what is
# sorted by length together.
BATCHES_PER_WINDOW = 16


def embed_images(
    subject: Subject,
    reader: Reader,
    *,
    point: Point = "projected",
    indices: Sequence[int] | None = None,
) -> Tensor:
    """Features of the images of a data set, un-normalised, the same on every rank.

    Args:
        subject: whose image tower, on which device, in which precision, and where features are
            kept.
        reader: the data set.
        point: after the head, or before it.
        indices: only these positions, in this order; by default all.

    Returns:
        `[N, D]` float32 on the CPU; D is the tower's `width`, or its `feature_width` for the
        backbone.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    if not isinstance(reader, Reader):
        raise DataError(
            "this data can only be read as a stream; evaluation needs every sample at its place."
            " Use local shards or files."
        )
    tower = _needed(subject, "image")
    expected = tower.input
    key = _digest(
        subject.digest(tower), reader.fingerprint(), repr(tuple(expected)), subject.precision
    )

    def compute(batches: list[Rows]) -> Iterator[Tensor]:
        positions = [int(position) for batch in batches for position in batch]
        views = {tower.name: MODALITIES[tower.modality].view(expected, None, None)}
        for batch in in_order(
            reader, views, positions, batch_size=subject.batch_size, workers=subject.workers
        ):
            yield _features(subject, tower, batch.to(subject.device).inputs[tower.name])

    wanted = np.arange(len(reader)) if indices is None else np.asarray(indices, dtype=np.int64)
    return _embed(subject, tower, key, len(reader), wanted, compute, _in_order_batches, point)


def embed_texts(subject: Subject, texts: Sequence[str], *, point: Point = "projected") -> Tensor:
    """Features of texts, un-normalised, the same on every rank; a text that occurs twice is encoded
    once.

    Returns:
        `[M, D]` float32 on the CPU.
    """
    tower = _needed(subject, "text")
    rows: dict[str, int] = {}
    wanted = np.fromiter(
        (rows.setdefault(text, len(rows)) for text in texts), dtype=np.int64, count=len(texts)
    )
    unique = list(rows)
    fingerprint = hashlib.sha256()
    for text in unique:
        encoded = text.encode("utf-8", "surrogatepass")
        fingerprint.update(f"{len(encoded)}:".encode() + encoded)
    key = _digest(subject.digest(tower), fingerprint.hexdigest(), "text", subject.precision)
    lengths = np.fromiter((len(text) for text in unique), dtype=np.int64, count=len(unique))

    def by_length(missing: Rows, batch_size: int) -> list[list[Rows]]:
        # Texts of similar length share a batch, so that little of it is padding; the longest come
        # first, so that memory runs out at once or never.
        ordered = missing[np.argsort(-lengths[missing], kind="stable")]
        return _in_order_batches(ordered, batch_size)

    def compute(batches: list[Rows]) -> Iterator[Tensor]:
        for batch in batches:
            tokens = tower.input([unique[row] for row in batch])
            yield _features(
                subject, tower, {name: tensor.to(subject.device) for name, tensor in tokens.items()}
            )

    return _embed(subject, tower, key, len(unique), wanted, compute, by_length, point)


def class_features(
    subject: Subject, texts: Sequence[Sequence[str]], ensemble: Ensemble = "normalise"
) -> Tensor:
    """One unit-length feature per class, `[C, D]`: the mean of the features of its texts, each
    brought to unit length before (`normalise`) or taken as it is."""
    features = embed_texts(subject, [text for own in texts for text in own])
    if ensemble == "normalise":
        features = normalise(features)
    return normalise(
        torch.stack([block.mean(0) for block in features.split([len(own) for own in texts])])
    )


def require_equal_widths(image: int, text: int, suite: str) -> None:
    """Features of these widths can be compared.

    Raises:
        RecipeError: the widths differ.
    """
    if image != text:
        raise RecipeError(
            f"suite '{suite}': the image tower gives {image} values and the text tower {text}, and"
            f" they are compared. Give one of them `head: {{name: linear, width: {text}}}`."
        )


def encode_texts(subject: Subject, texts: Sequence[str]) -> Tensor:
    """Features of the text tower's backbone on this rank alone, kept nowhere: for collections that
    are too large for `embed_texts`.

    Returns:
        `[M, feature_width]` float32 on the CPU, in the order of the texts.
    """
    tower = _needed(subject, "text")
    features = torch.empty(len(texts), tower.feature_width)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    with evaluating(tower):
        for batch in _split(order, subject.batch_size):
            tokens = tower.input([texts[row] for row in batch])
            inputs = {name: tensor.to(subject.device) for name, tensor in tokens.items()}
            features[torch.from_numpy(batch)] = _features(subject, tower, inputs)
    return features


def project_texts(subject: Subject, features: Tensor) -> Tensor:
    """Features `[M, feature_width]` of the text tower's backbone through its head, float32 on the
    CPU."""
    tower = _needed(subject, "text")
    return features if isinstance(tower.head, nn.Identity) else _project(subject, tower, features)


def normalise(features: Tensor) -> Tensor:
    """Rows of unit length; a row of zeros stays zero."""
    return nn.functional.normalize(features, dim=-1)


def _embed(
    subject: Subject,
    tower: Tower,
    key: str,
    rows: int,
    wanted: Rows,
    compute: Callable[[list[Rows]], Iterator[Tensor]],
    plan: Callable[[Rows, int], list[list[Rows]]],
    point: Point,
) -> Tensor:
    store = subject.tables.stores.get(key)
    if store is None:
        # Files of another shape belong to another version of the tower's builder; the width is part
        # of the name.
        folder = (
            None
            if subject.cache is None
            else Path(subject.cache) / "features" / f"{key}-{tower.feature_width}"
        )
        store = _open_together(folder, rows, tower.feature_width)
        subject.tables.stores[key] = store
    _fill(subject, tower, store, wanted, compute, plan)
    everything = len(wanted) == rows and bool((wanted == np.arange(rows)).all())
    table = store.table()
    features = torch.from_numpy(table if everything else table[wanted])
    if point == "backbone" or isinstance(tower.head, nn.Identity):
        return features
    if not everything:
        return _project(subject, tower, features)
    memo = _digest(key, _weights_digest(tower.head))
    projected = subject.tables.projected
    if memo not in projected:
        projected[memo] = _project(subject, tower, features)
    return projected[memo]


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
    compute: Callable[[list[Rows]], Iterator[Tensor]],
    plan: Callable[[Rows, int], list[list[Rows]]],
) -> None:
    """Compute the wanted rows that are still missing: windows of batches, dealt to the ranks in
    turn.

    The batches depend on what is missing only, never on the number of ranks, and so do the numbers.
    """
    done = store.done
    if world_size() > 1:
        done = np.minimum.reduce(
            gather_objects(done)
        )  # machines without a common disk may have kept different rows
    missing = np.unique(wanted[done[wanted] == 0])
    if not len(missing):
        return
    windows = plan(missing, subject.batch_size)
    own = windows[rank() :: world_size()]
    with evaluating(tower):
        stream = compute([batch for window in own for batch in window])
        for turn in range(-(-len(windows) // world_size())):
            window = own[turn] if turn < len(own) else []
            problem, indices, values = "", np.zeros(0, dtype=np.int64), torch.zeros(0, store.width)
            try:
                if window:
                    values = torch.cat([next(stream) for _ in window])
                    indices = np.concatenate(window)
                    insist_on_numbers(tower, values)
            except UserError as error:
                problem = str(error)
            _fail_together(problem)
            if world_size() > 1:
                indices = gather_ragged(torch.from_numpy(indices).to(subject.device)).cpu().numpy()
                values = gather_ragged(values.to(subject.device))
            try:
                # Ranks of one machine share its files: the first one writes.
                if store.folder is None or local_rank() == 0 or world_size() == 1:
                    store.write(indices, values.cpu().numpy())
                else:
                    store.mark(indices)
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


def _project(subject: Subject, tower: Tower, features: Tensor) -> Tensor:
    """Kept backbone features through the head, in large batches; done on every rank, since it costs
    less than an exchange."""
    projected = torch.empty(len(features), tower.width)
    with evaluating(tower), torch.no_grad(), autocast(subject.precision, subject.device):
        for start in range(0, len(features), 4096):
            block = features[start : start + 4096]
            projected[start : start + len(block)] = (
                tower.project(block.to(subject.device)).float().cpu()
            )
    insist_on_numbers(tower, projected)
    return projected


def insist_on_numbers(tower: Tower, features: Tensor) -> None:
    """No suite says anything sensible about NaN and infinity, and some would fail without a word of
    the cause.

    Raises:
        DataError: some are not finite.
    """
    wrong = int((~torch.isfinite(features).all(1)).sum())
    if wrong:
        raise DataError(
            f"{wrong} of {len(features)} features of tower '{tower.name}' hold NaN or infinity: its"
            " weights have diverged, or the precision is too low. Evaluate an earlier checkpoint,"
            " or with `--set train.precision=fp32`."
        )


def _features(subject: Subject, tower: Tower, inputs: object) -> Tensor:
    with torch.no_grad(), autocast(subject.precision, subject.device):
        return tower.features(inputs).float().cpu()


@contextmanager
def evaluating(tower: nn.Module) -> Iterator[None]:
    """The tower in eval mode for a while; afterwards every part is in the mode that it was in."""
    modes = [(module, module.training) for module in tower.modules()]
    tower.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _in_order_batches(missing: Rows, batch_size: int) -> list[list[Rows]]:
    return [
        _split(window, batch_size) for window in _split(missing, batch_size * BATCHES_PER_WINDOW)
    ]


def _split(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _needed(subject: Subject, modality: ModalityName) -> Tower:
    tower = subject.tower(modality)
    if tower is None:
        raise UserError(
            f"this evaluation needs a tower for {FACTS[modality].plural}, and there is none."
        )
    return tower


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(
            name.encode()
            + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
